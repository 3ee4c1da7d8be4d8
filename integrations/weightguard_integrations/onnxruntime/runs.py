"""Every way to run a session, each after the checks that are due, and what is refused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import onnxruntime as ort

from weightguard.errors import WeightguardError
from weightguard_integrations.onnxruntime.canary import Feed, Outputs


class CheckedRuns(ort.InferenceSession):  # type: ignore[misc]
    """An InferenceSession that has something to do before each run, and when one fails."""

    @abstractmethod
    def checked(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Do what is due, then run, and look after it if it fails."""

    @abstractmethod
    def suspect(self) -> Callable[[str], None]:
        """Return what is told why a run failed in a thread of the runtime's own."""

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """See InferenceSession; what is due of checks comes first."""
        return self.checked(super().run, output_names, input_feed, run_options)

    def run_async(
        self,
        output_names: Any,
        input_feed: Any,
        callback: Any,
        user_data: Any,
        run_options: Any = None,
    ) -> Any:
        """See InferenceSession."""
        # not the session itself: its last reference must not go in a thread that its end waits for
        suspect = self.suspect()

        def told(results: Any, data: Any, error: str) -> None:
            if error:
                suspect(error)
            callback(results, data, error)

        arguments = (output_names, input_feed, told, user_data, run_options)
        return self.checked(super().run_async, *arguments)

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> Any:
        """See InferenceSession."""
        arguments = (output_names, input_dict_ort_values, run_options)
        return self.checked(super().run_with_ort_values, *arguments)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> Any:
        """See InferenceSession."""
        return self.checked(super().run_with_iobinding, iobinding, run_options)

    def run_with_ortvaluevector(
        self,
        run_options: Any,
        feed_names: Any,
        feeds: Any,
        fetch_names: Any,
        fetches: Any,
        fetch_devices: Any,
    ) -> Any:
        """See InferenceSession."""
        arguments = (run_options, feed_names, feeds, fetch_names, fetches, fetch_devices)
        return self.checked(super().run_with_ortvaluevector, *arguments)

    def run_plainly(self, feed: Feed, options: ort.RunOptions | None = None) -> Outputs:
        """Run without what comes before a run."""
        outputs: Outputs = super().run(None, feed, options)
        return outputs

    def enable_fallback(self) -> NoReturn:
        """Refused: other providers would compute with what was not verified."""
        raise WeightguardError(
            "a guarded session falls back on no other providers: make a new one with those"
        )
