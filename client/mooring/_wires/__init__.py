"""One module per protocol and way of waiting; each is imported when a client first uses it."""
