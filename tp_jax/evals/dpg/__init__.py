"""The DPG-Bench suite: questions about images of long prompts."""
