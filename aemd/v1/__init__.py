"""The generated messages of proto/aem/v1. Made by `make proto`; do not edit."""
