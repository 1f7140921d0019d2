"""Write geneval2.json next to this script: the official analysis of answers from a formula.

    PYTHONPATH=.. python make_geneval2.py --geneval2=PATH_TO_A_CLONE_OF_facebookresearch/GenEval2

Needs scipy and tqdm. The tests only read the file.
"""

import argparse
import json
import pathlib
import sys
import warnings

from geneval2_formula import answers, prompts
from scipy.stats import gmean


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geneval2", required=True, help="a clone of facebookresearch/GenEval2")
    sys.path.insert(0, parser.parse_args().geneval2)
    from soft_tifa_analysis import per_atomicity_analysis, per_skill_analysis

    warnings.simplefilter("ignore")  # the logarithm of the answer that is zero
    lines, scores = prompts(), answers()
    names = ("object", "attribute", "count", "position", "verb")
    skills = per_skill_analysis(scores, [line["skills"] for line in lines])
    atoms = per_atomicity_analysis(scores, [line["atom_count"] for line in lines])
    content = {
        # As at the end of evaluation.py.
        "am": 100 * sum(sum(s) / len(s) for s in scores) / len(scores),
        "gm": float(100 * sum(gmean(s) for s in scores) / len(scores)),
        "skills": dict(zip(names, map(float, skills), strict=True)),
        "atoms": {str(number): float(found["accuracy"]) for number, found in atoms.items()},
    }
    path = pathlib.Path(__file__).parent / "geneval2.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
