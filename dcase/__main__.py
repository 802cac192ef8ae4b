"""``python -m dcase``, for torchrun and for machines where the script is not on the PATH."""

from dcase.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
