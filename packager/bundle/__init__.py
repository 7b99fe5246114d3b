"""The bundle: its layout and records, its one writer, its fingerprint, and its verification."""
