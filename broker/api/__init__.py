"""What travels: models of requests and replies, and the envelope around them."""
