"""Pictures and texts in one space: the vector of a picture is close to that of its caption."""
