"""Families of models, a package each: configuration, schema, layouts, official files, relatives."""
