"""Networks: encoder, decoder, and their configs."""
