"""Commands of the command line, by subject; `mae_convert.cli` puts them together."""
