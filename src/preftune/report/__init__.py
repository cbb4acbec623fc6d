"""Pages for people: one self-contained HTML file each, from the files that other commands wrote. Imports no torch."""
