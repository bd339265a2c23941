"""The served log, the windows that it marks, and the index of them. Knows keys; no suspect."""
