"""Where a token becomes random: words, contexts, and which of them are distinct."""
