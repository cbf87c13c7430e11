"""Where the pages of a search come from, and what they are for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Count, FilePath, Section, Share, Text

SPLITS = ("train", "score", "select", "final")
"""What pages are for: distilling, scoring components, choosing plans, the final comparison."""


class RenderedData(Section):
    """Pages that circuitsearch renders (see `teacher.documents.synthetic`)."""

    source: Literal["rendered"] = Field("rendered", description="where the pages come from")
    train: Count = Field(1500, description="pages to distil on")
    score: Count = Field(80, description="pages to score components on")
    select: Count = Field(80, description="pages to choose plans on")
    final: Count = Field(150, description="pages of the final comparison, used once per student")


SplitName = Literal["train", "score", "select", "final"]


class _FilesData(Section):
    faults: Literal["error", "skip"] = Field(
        "error", description="broken rows: stop, or skip and count"
    )
    shares: dict[SplitName, Share] = Field(
        default={"train": 0.6, "score": 0.1, "select": 0.1, "final": 0.2},
        description="share of the documents per split; a split never cuts a document",
    )

    @field_validator("shares")
    @classmethod
    def _all_splits(cls, shares: dict[SplitName, float]) -> dict[SplitName, float]:
        # whether `train` has to be there is for the whole section to say
        missing = [name for name in SPLITS if name not in shares and name != "train"]
        if missing:
            raise ValueError(
                f"missing {', '.join(missing)}; give a share for each of {', '.join(SPLITS)}"
            )
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"the shares sum to {sum(shares.values()):g}, allowed at most 1")
        return shares

    @model_validator(mode="after")
    def _train_once(self) -> _FilesData:
        apart = getattr(self, "train", None) is not None
        if apart and "train" in self.shares:
            raise ValueError(
                "shares.train: the pages to distil on are in data.train, a file of their own; "
                "leave this share out"
            )
        if not apart and "train" not in self.shares:
            raise ValueError(f"shares: missing train; give a share for each of {', '.join(SPLITS)}")
        return self


class DocVQAData(_FilesData):
    """A data set in DocVQA's official JSON format.

    With `train`, `path` is dealt 20/20/60 to scores, selection and the final comparison, as
    Donut-MINT deals DocVQA's validation file.
    """

    source: Literal["docvqa"] = Field(description="where the pages come from")
    path: FilePath = Field(description="the JSON file")
    train: FilePath | None = Field(
        None, description="a JSON file to distil on; `path` then serves the other splits alone"
    )
    train_images: FilePath | None = Field(
        None, description="root of its image paths; default that file's folder"
    )
    images: FilePath | None = Field(
        None, description="root of the image paths; default the JSON's folder"
    )

    @model_validator(mode="before")
    @classmethod
    def _dealt(cls, given: Any) -> Any:
        """Deal 20/20/60 where the pages to distil on are a file of their own."""
        if isinstance(given, dict) and given.get("train") is not None and "shares" not in given:
            return {**given, "shares": {"score": 0.2, "select": 0.2, "final": 0.6}}
        return given


class RowsData(_FilesData):
    """Rows of a Hugging Face data set: a saved folder, a Parquet file or a name."""

    source: Literal["huggingface"] = Field(description="where the pages come from")
    path: Text = Field(description="folder, Parquet file or name")
    split: str | None = Field(None, description="split of the data set, where it has several")
    columns: dict[str, str] = Field(
        default_factory=dict, description="role -> column, where unusual"
    )


DataConfig = Annotated[RenderedData | DocVQAData | RowsData, Field(discriminator="source")]
