"""What authors and Holdfast's own tests use: a scripted model server and a fake clock."""
