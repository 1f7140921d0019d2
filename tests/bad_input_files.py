"""Config files and folders that tests of bad input write."""


def config_file(folder, *changes, name="config.py"):
    """A config file with tiny_config and these lines; beside none of what a test watches."""
    path = folder / "configs" / name
    path.parent.mkdir(exist_ok=True)
    body = "\n    ".join(["config = tiny_config()", *changes, "return config"])
    path.write_text(f"from conftest import tiny_config\n\n\ndef get_config():\n    {body}\n")
    return path


def make_foreign(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder
