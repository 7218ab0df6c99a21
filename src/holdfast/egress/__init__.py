"""The way out of a boundary: each request is decided, fitted with credentials, metered and recorded."""
