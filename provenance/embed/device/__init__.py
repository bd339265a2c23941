"""The draw on an accelerator: coins, rules and draws in torch and Triton, equal to the host's."""
