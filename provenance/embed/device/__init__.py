"""The draw on an accelerator: coins and steps in torch and Triton, bit-equal to the host."""
