"""Secrets in saved configs: the masked values, and identity keys, which are not masked."""

import json

import pytest
from omegaconf import OmegaConf

from framework.config.identity import check_same_run
from framework.config.secrets import MASK, masked, without_typed_secrets
from framework.data.reading.credentials import HIDDEN, names_secret, safe_argument, without_credentials
from framework.errors import ConfigError

ENVIRONMENT = {
    "DATA_PASS": "hunter2hunter2",
    "DB_URL": "postgres://reader:hunter3hunter3@host:5432/rows",
    "MY_API_KEY": "s3cret",
    "MY_FOLDER": "somewhere",
    "BATCH_TOKENS": "4096",
    "TOKENIZER": "vocabularies/one",
    "KEY_FILE": "keys/one",
}


def saved(monkeypatch: pytest.MonkeyPatch, config: dict[str, object], **more: str) -> dict:
    for name, value in (ENVIRONMENT | more).items():
        monkeypatch.setenv(name, value)
    composed = OmegaConf.create(config)
    result = masked(composed, OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    assert OmegaConf.to_container(composed, resolve=True) is not None, "the resolver of the environment is restored"
    return result


def test_a_secret_is_masked_at_its_leaf_whatever_its_origin(monkeypatch):
    config = {
        "first": "${oc.env:DATA_PASS}",
        "second": "${first}",
        "third": {"note": "user ${second} here", "list": ["${...second}", "b"]},
        "group": "${third}",
        "decoded": "${oc.decode:${oc.env:DATA_PASS}}",
        "options": {"password": "${oc.env:MY_FOLDER}", "credentials": {"value": "${oc.env:MY_FOLDER}"}},
    }
    result = saved(monkeypatch, config)
    text = json.dumps(result)
    assert "hunter2" not in text and "somewhere" not in text
    assert result["first"] == result["second"] == result["decoded"] == MASK
    assert result["third"] == result["group"] == {"note": f"user {HIDDEN} here", "list": [MASK, "b"]}
    assert result["options"] == {"password": MASK, "credentials": {"value": MASK}}


def test_credentials_of_urls_are_masked_whatever_their_origin(monkeypatch):
    config = {
        "a": "${oc.env:DB_URL}",
        "b": "https://me:pw@host/rows.csv?part=1&X-Amz-Signature=abc&token=x#end",
        "c": ["s3://bucket/rows.csv"],
        "d": "https://me:${oc.env:DATA_PASS}@host/x",
    }
    assert saved(monkeypatch, config) == {
        "a": f"postgres://{HIDDEN}@host:5432/rows",
        "b": f"https://{HIDDEN}@host/rows.csv?part=1&X-Amz-Signature={HIDDEN}&token={HIDDEN}#end",
        "c": ["s3://bucket/rows.csv"],
        "d": f"https://{HIDDEN}@host/x",
    }


def test_lists_and_groups_that_are_decoded_from_a_secret_are_masked(monkeypatch):
    config = {
        "list": "${oc.decode:${oc.env:API_SECRETS}}",
        "group": "${oc.decode:${oc.env:SECRET_MAP}}",
        "some": "${oc.decode:'[a, ${oc.env:DATA_PASS}]'}",
        "token": {"parts": "${oc.decode:${oc.env:PARTS}}"},
        "parts": "${oc.decode:${oc.env:PARTS}}",
    }
    values = {"API_SECRETS": "[abc, 3]", "SECRET_MAP": "{a: [abc]}", "PARTS": "[abc, x]"}
    assert saved(monkeypatch, config, **values) == {
        "list": [MASK, 3],
        "group": {"a": [MASK]},
        "some": [MASK, MASK],
        "token": {"parts": [MASK, MASK]},
        "parts": ["abc", "x"],
    }


def test_passwords_of_connection_strings_from_the_environment_are_masked(monkeypatch):
    account = "AccountName=a;AccountKey=abc==;EndpointSuffix=core"
    config = {"dsn": "${oc.env:DSN}", "storage": "${oc.env:CONNECTION}", "where": "token=3", "b": "${oc.env:WHERE}"}
    values = {"DSN": "host=h password='a b' user=u", "CONNECTION": account, "WHERE": "stars=3"}
    assert saved(monkeypatch, config, **values) == {
        "dsn": f"host=h password={HIDDEN} user=u",
        "storage": f"AccountName=a;AccountKey={HIDDEN};EndpointSuffix=core",
        "where": "token=3",
        "b": "stars=3",
    }


def test_values_whose_names_only_resemble_secrets_are_kept(monkeypatch):
    config = {
        "trainer": {"global_batch_tokens": "${oc.decode:${oc.env:BATCH_TOKENS}}"},
        "tokenizer": {"path": "${oc.env:TOKENIZER}"},
        "data": {"key_file": "${oc.env:KEY_FILE}", "text_key": "body", "train": "${oc.env:MY_FOLDER}"},
    }
    result = saved(monkeypatch, config)
    assert result["trainer"] == {"global_batch_tokens": 4096}
    assert result["tokenizer"] == {"path": "vocabularies/one"}
    assert result["data"] == {"key_file": "keys/one", "text_key": "body", "train": "somewhere"}


def test_a_new_password_is_the_same_run_and_a_new_file_is_not(monkeypatch):
    config = {"data": {"train": "https://me:${oc.env:DATA_PASS}@host/rows.csv", "password": "${oc.env:DATA_PASS}"}}
    before = saved(monkeypatch, config)
    check_same_run("runs/x", before, saved(monkeypatch, config, DATA_PASS="another"))
    config["data"]["train"] = "https://me:${oc.env:DATA_PASS}@host/others.csv"
    with pytest.raises(ConfigError, match=r"`data\.train` was"):
        check_same_run("runs/x", before, saved(monkeypatch, config))


TYPED = {
    "key": "AKIA",
    "password": 4477,
    "anon": False,
    "retries": 3,
    "endpoint_url": "https://host/x",
    "client_kwargs": {"headers": {"Authorization": "Bearer abc", "Accept": "json"}, "region": "eu"},
    "token": {"type": "service_account", "private_key_id": "abc"},
    "credentials": ["abc", ""],
    "connection_string": "AccountName=a;AccountKey=abc==;EndpointSuffix=core",
}


def test_typed_secrets_are_masked_at_their_leaves_and_nothing_else(monkeypatch):
    config = {"data": {"_target_": "a.B", "storage_options": TYPED}, "task": {"sort_key": "id", "mask_token": "[M]"}}
    result = saved(monkeypatch, config)
    assert result["data"]["storage_options"] == {
        "key": HIDDEN,
        "password": HIDDEN,
        "anon": False,
        "retries": 3,
        "endpoint_url": "https://host/x",
        "client_kwargs": {"headers": {"Authorization": HIDDEN, "Accept": "json"}, "region": "eu"},
        "token": {"type": HIDDEN, "private_key_id": HIDDEN},
        "credentials": [HIDDEN, ""],
        "connection_string": f"AccountName=a;AccountKey={HIDDEN};EndpointSuffix=core",
    }
    assert result["task"] == {"sort_key": "id", "mask_token": "[M]"} and result["data"]["_target_"] == "a.B"
    assert without_typed_secrets(result) == result


def test_a_typed_secret_may_change_and_a_run_that_saved_it_unmasked_resumes(monkeypatch):
    config = {"data": {"store": "a", "storage_options": TYPED}}
    new = {"data": {"store": "a", "storage_options": TYPED | {"key": "another", "password": "${oc.env:DATA_PASS}"}}}
    for before in (config, saved(monkeypatch, config)):
        for now in (config, new):
            check_same_run("runs/x", before, saved(monkeypatch, now))
        other = {"data": {"store": "a", "storage_options": TYPED | {"endpoint_url": "https://other/x"}}}
        with pytest.raises(ConfigError, match=r"`data\.storage_options\.endpoint_url` was 'https://host/x' and is now"):
            check_same_run("runs/x", before, saved(monkeypatch, other))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.storage_options.secret=abc", f"data.storage_options.secret={HIDDEN}"),
        ("+data.storage_options.token=[a,b]", f"+data.storage_options.token={HIDDEN}"),
        ("data.storage_options={anon: true, 'secret': abc}", f"data.storage_options={HIDDEN}"),
        ("data.storage_options={anon: true}", "data.storage_options={anon: true}"),
        ("data.train=https://me:pw@host/a?sig=x&b=1", f"data.train=https://{HIDDEN}@host/a?sig={HIDDEN}&b=1"),
        ("data.dsn='host=h password=abc'", f"data.dsn={HIDDEN}"),
        ("tokenizer.path=a/b", "tokenizer.path=a/b"),
        ("trainer.global_batch_tokens=4096", "trainer.global_batch_tokens=4096"),
        ("https://me:pw@host", f"https://{HIDDEN}@host"),
        ("-m", "-m"),
    ],
)
def test_secrets_of_a_command_line_are_hidden(argument, expected):
    assert safe_argument(argument) == expected


def test_values_masked_by_an_earlier_version_are_not_compared():
    before = {"tokenizer": {"path": MASK}, "seed": 1}
    check_same_run("runs/x", before, {"tokenizer": {"path": "vocabularies/one"}, "seed": 1})
    with pytest.raises(ConfigError, match="`seed` was 1 and is now 2"):
        check_same_run("runs/x", before, {"tokenizer": {"path": "vocabularies/one"}, "seed": 2})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("DATA_PASS", "HF_TOKEN", "apiKey", "APIKey", "db-password", "AWS_ACCESS_KEY_ID")),
        *((name, True) for name in ("PGPASSWORD", "AUTHTOKEN", "MYSECRET", "PRIVATEKEY", "GITHUB_PAT", "SSHPASS")),
        *((name, False) for name in ("global_batch_tokens", "tokenizer", "MONKEY", "compass", "KEY_FILE", "", "a1")),
        *((name, True) for name in ("key", "account_key", "key_id", "sas_token", "MY_PASS")),
        *((name, False) for name in ("sort_key", "mask_token", "TEXT_KEY", "first_pass", "pad_token_id")),
        *((name, False) for name in ("NUM_TOKENS", "tokenized", "PATTERN", "secretary", "PATH")),
    ],
)
def test_names_are_compared_by_whole_words(name, expected):
    assert names_secret(name) == expected


def test_texts_without_credentials_stay():
    for text in ("a@b.c", "see https://host/a@b?part=2", "me:pw@host", "s3://bucket/a:b", "sftp://me@host/x"):
        assert without_credentials(text) == text
    for text in ("http://host:8080/a@b", "http://host:80?mail=a@b", "s3://bucket/a:b@c", "http://host:/a@b"):
        assert without_credentials(text) == text


def test_a_password_may_contain_the_separators_of_a_path():
    assert without_credentials("postgres://me:a/b?c#d@host/rows") == f"postgres://{HIDDEN}@host/rows"
    assert without_credentials("redis://:a/b@host:6379/0") == f"redis://{HIDDEN}@host:6379/0"
