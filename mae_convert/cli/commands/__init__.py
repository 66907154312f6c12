"""The commands, one module for each subject; `mae_convert.cli.main` registers them."""
