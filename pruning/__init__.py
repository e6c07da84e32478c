"""Which visual tokens to keep: importance scorers, selectors and the named methods built from them."""
