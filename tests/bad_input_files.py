"""Write config files and folders for tests of bad input."""


def config_file(folder, *changes, name="config.py"):
    """Write a config file that returns `tiny_config()` after the lines `changes`.

    It lies outside of the folders that the fixture `refused` watches.
    """
    path = folder / "configs" / name
    path.parent.mkdir(exist_ok=True)
    body = "\n    ".join(["config = tiny_config()", *changes, "return config"])
    path.write_text(f"from conftest import tiny_config\n\n\ndef get_config():\n    {body}\n")
    return path


def make_foreign(folder):
    """Make a folder with a file that tp_jax didn't write."""
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder
