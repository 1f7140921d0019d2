"""GenEval 2: longer prompts, judged question by question (Soft-TIFA)."""
