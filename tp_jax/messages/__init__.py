"""What a run tells a person: errors and progress."""
