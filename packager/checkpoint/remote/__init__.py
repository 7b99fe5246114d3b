"""Checkpoints behind URLs: `fetch` finds or downloads them, and the other modules are its parts."""
