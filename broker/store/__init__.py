"""What is kept: leases, tokens and configuration documents, sealed and durable."""
