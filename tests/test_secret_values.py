"""Tokens, keys and passwords reach no file that a run writes and no line that it says."""

from __future__ import annotations

import copy
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from preftune import DPOConfig, RewardConfig, SFTConfig
from preftune.cli.flags.messages import echo, paragraph
from preftune.errors import ModelError
from preftune.log import say
from preftune.models.locate import locate
from preftune.secret_values import hidden, without_starred
from preftune.storage.cache_folder import cache_folder, make_private
from preftune.training.ppo import PPOConfig
from tests.training.dpo_runs import lora_config, trainer
from tiny import save_tiny

KEY = "sk-SECRETaaaaaaaaaaaaaaaa"
HUB = "hf_SECRETbbbbbbbbbbbbbbbb"


@pytest.mark.parametrize("kind", [DPOConfig, SFTConfig, RewardConfig])
def test_a_pickled_configuration_holds_no_token_and_a_copy_in_memory_holds_all(kind, tmp_path):
    made = kind(
        output_dir=str(tmp_path), hub_token=HUB, model_init_kwargs={"token": HUB, "revision": "main"}, report_to="none"
    )
    kept = pickle.dumps(made)
    assert b"SECRET" not in kept
    again = pickle.loads(kept)
    assert (again.hub_token, again.model_init_kwargs) == (None, {"revision": "main"})
    assert again.learning_rate == made.learning_rate
    for copied in (copy.copy(made), copy.deepcopy(made)):
        assert copied.hub_token == HUB
        assert copied.model_init_kwargs["token"] == HUB
    assert made.hub_token == HUB


def test_no_file_of_a_run_holds_a_token(tmp_path):
    made = trainer(
        save_tiny(tmp_path.with_name("model")),
        tmp_path,
        peft_config=lora_config(),
        hub_token=HUB,
        model_init_kwargs={"token": HUB},
        save_strategy="steps",
        save_steps=2,
    )
    made.train()
    made.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "run.json"} <= {path.name for path in files}
    assert any(path.parent.name == "checkpoint-2" and path.name == "training_args.bin" for path in files)
    for path in files:
        assert b"SECRET" not in path.read_bytes(), path
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).hub_token is None


def test_a_reward_ensemble_of_ppo_is_pickled_too(tmp_path):
    made = PPOConfig(output_dir=str(tmp_path), hub_token=HUB, reward_model=["rule:a:b"], report_to="none")
    assert b"SECRET" not in pickle.dumps(made)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x.jsonl is not there", "https://***@host/x.jsonl is not there"),
        (f"Illegal header value b'Bearer {KEY}\\nbbb'", "Illegal header value b'Bearer ***'"),
        (f"wrong key {KEY[:10]}", "wrong key ***"),
        (f"wrong key {KEY[4:]!r}", "wrong key '***'"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_what_is_said_hides_a_key_whole_or_in_part(text, shown):
    assert hidden(text, [KEY]) == shown


def test_a_key_with_a_line_break_is_hidden_as_python_writes_it():
    key = f"{KEY}\nbbbbbbbb"
    assert "SECRET" not in hidden(f"Illegal value {key!r} or {key.encode()!r} or {key}", [key])


def test_the_ends_of_a_key_that_a_server_shows_are_hidden():
    assert without_starred("Incorrect API key provided: sk-SE***************aaaa. See") == (
        "Incorrect API key provided: ***. See"
    )


def test_keys_of_the_environment_are_in_no_message(monkeypatch, capsys, caplog):
    monkeypatch.setenv("SOME_API_KEY", "nothing-that-begins-as-a-token")
    echo(paragraph(ValueError("server said nothing-that-begins-as-a-token")))
    assert "server said ***" in capsys.readouterr().err
    with caplog.at_level(logging.INFO, logger="preftune"):
        say("it is nothing-that-begins-as-a-token")
    assert "begins-as" not in caplog.text


def test_the_cache_is_its_owners_alone_unless_it_was_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "new" / "cache"))
    make_private(cache_folder() / "tokens")
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o775)
    monkeypatch.setenv("PREFTUNE_CACHE", str(shared))
    make_private(Path(shared) / "tokens")
    assert shared.stat().st_mode & 0o777 == 0o775


def test_a_token_of_the_hub_that_no_header_can_carry_is_named_and_not_shown(monkeypatch):
    from huggingface_hub import HfApi

    def ask(self, *args, **kwargs):
        "hf_SECRETü".encode("ascii")

    monkeypatch.setattr(HfApi, "model_info", ask)
    with pytest.raises(ModelError, match="The token for the hub") as caught:
        locate("nobody/nothing-of-this-name")
    assert "SECRET" not in str(caught.value)


def test_the_password_of_an_address_is_in_no_error(tmp_path, capsys, monkeypatch):
    from preftune.cli.main import main

    model = save_tiny(tmp_path / "model")
    words = ["dpo", "--model", model, "--data", "https://me:geheim@host.invalid/x.jsonl", "--output_dir", str(tmp_path)]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "geheim" not in said.err + said.out
    assert "host.invalid" in said.err
