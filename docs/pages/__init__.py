"""The reference pages, one module each: a function to Markdown."""
