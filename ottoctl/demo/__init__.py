"""What `ottoctl demo` shows: the project it works on, the second client, the report."""
