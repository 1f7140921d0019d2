"""The Shapes suite: GenEval's skills in pictures of coloured shapes."""
