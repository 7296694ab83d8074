"""Where text comes from: files, rows of tables, datasets, shards behind URLs; and what a document is."""
