"""The study: a folder that keeps all of it, one method per command."""

from mixlaw.study.folder import Study, StudyStatus

__all__ = ["Study", "StudyStatus"]
