"""Lets `python -m text_jepa VERB` do what `text-jepa VERB` does."""

from text_jepa.commands.main import main


if __name__ == "__main__":
    main()
