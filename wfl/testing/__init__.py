"""What a user's own tests, and the tests of a backend made elsewhere, can build on."""
