"""Sources of text: files, rows of tables, datasets, and shards behind URLs; cleaning and splitting of documents."""
