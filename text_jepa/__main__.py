"""Lets `python -m text_jepa COMMAND` do what `text-jepa COMMAND` does."""

from text_jepa.commands.main import main


if __name__ == "__main__":
    main()
