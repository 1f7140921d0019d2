"""From model outputs to pictures, and from files of pictures to arrays."""
