"""Reranking: one relevance score per (query, document), to order the candidates of a query."""
