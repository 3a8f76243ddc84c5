"""The shop's own engine. It raises the library's errors as typed exceptions, and leaves the
shop's own errors unchanged."""

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from orchestration.database import install_error_translation


def sessions(url: str | URL) -> sessionmaker[Session]:
    engine = create_engine(url)
    install_error_translation(engine)
    return sessionmaker(engine)
