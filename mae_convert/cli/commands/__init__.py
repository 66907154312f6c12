"""Commands of the command line, by subject; `mae_convert.cli.main` registers them."""
