"""Whether steering does what it says, and whether a circuit holds on unseen prompts."""
