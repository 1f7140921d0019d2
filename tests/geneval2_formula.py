"""Prompts and answers in the formats of GenEval 2, from a formula."""

import numpy as np

SKILLS = ("object", "attribute", "count", "position", "verb")


def prompts(count=40):
    """The lines of a file such as geneval2_data.jsonl; every skill and 3 to 10 atoms occur."""
    found = []
    for index in range(count):
        atoms = 3 + index % 8
        skills = [SKILLS[(index + i) % 5] for i in range(atoms + index % 3)]
        found.append(
            {
                "prompt": f"things of kind {index}",
                "atom_count": atoms,
                "vqa_list": [[f"Question {i}?", "Yes"] for i in range(len(skills))],
                "skills": skills,
            }
        )
    return found


def answers(count=40):
    """The list of scores that the official scorer writes; one answer is exactly zero."""
    rng = np.random.RandomState(0)
    found = [rng.rand(len(prompt["skills"])).tolist() for prompt in prompts(count)]
    found[3][1] = 0.0
    return found
