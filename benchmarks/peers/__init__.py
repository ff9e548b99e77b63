"""The contenders, each in its fastest form and in its usual form."""
