"""Every route of the service over a tiny run of two rounds."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from service_runs import client
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from andscale.audit.subject import load_features, open_subject
from andscale.cli import call
from andscale.data.images import decode_rgb
from andscale.data.samples import Shards
from andscale.errors import UsageError
from andscale.service.guard import Figures, Guard, Limits
from andscale.service.serve import check_address, token_from_environment


def problem(answer, status, words):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    record = answer.json()
    assert (record["status"], set(record)) == (status, {"type", "title", "status", "detail"})
    assert words in record["detail"]


@pytest.fixture(scope="module")
def subject(served_run):
    return open_subject(served_run.root, 2)


@pytest.fixture(scope="module")
def features(subject):
    return load_features(subject)


def test_neighbours_are_those_of_the_table_and_beyond_it_those_of_the_index(api, subject, features):
    similarities = features.astype(np.float64) @ features.T.astype(np.float64)
    np.fill_diagonal(similarities, -np.inf)
    for sample_id in (0, 17, 142):
        order = np.argsort(-similarities[sample_id], kind="stable")
        for k, source in ((None, "table"), (2, "table"), (3, "table"), (4, "index"), (60, "index")):
            answer = api.get(f"/v1/neighbours/{sample_id}", params={"k": k} if k else {}).json()
            found = [n["sample_id"] for n in answer["neighbours"]]
            assert (answer["round"], answer["source"], len(found)) == (2, source, k or 3)
            assert found == order[: k or 3].tolist()
            np.testing.assert_allclose(
                [n["similarity"] for n in answer["neighbours"]], similarities[sample_id][found], atol=1e-5
            )


def test_more_neighbours_begin_with_those_of_the_table(api, subject, monkeypatch):
    snapshot, whole = api.service.rounds.current, list(range(143))
    misses = [i for i in whole if i not in subject.table.neighbour_ids[17, 1:]]  # two of three, as an HNSW may

    def search(_, queries, count):
        return np.linspace(1, 0, count, dtype=np.float32)[None], np.array([misses[:count]])

    monkeypatch.setattr(type(snapshot), "search", search)
    few, many = (api.get(f"/v1/neighbours/17?k={k}").json()["neighbours"] for k in (3, 20))
    assert many[:3] == few
    rest = [i for i in misses if i not in {17, *subject.table.neighbour_ids[17]}]
    assert [n["sample_id"] for n in many[3:]] == rest[:17]


def test_a_sample_says_what_is_known_of_it(api, subject):
    answer = api.get("/v1/samples/17").json()
    label = int(subject.audit_labels[17])
    assert answer["source"] == subject.catalogue.sources[17]
    assert (answer["label"], answer["class"]) == (label, subject.classes[label])
    assert answer["entropy"] == pytest.approx(float(subject.table.entropies[17]))
    assert answer["is_anchor"] == bool(subject.table.is_anchor[17])
    assert answer["neighbour_ids"] == subject.table.neighbour_ids[17].tolist()
    assert answer["k_occurrence"] == int((subject.table.neighbour_ids == 17).sum())


def test_samples_are_listed_by_rising_entropy(api, subject):
    table, labels = subject.table, subject.audit_labels
    cases = {
        "": np.ones(143, bool),
        "class=3": labels == 3,
        "anchor=false": ~table.is_anchor,
        "key=digits%2314": np.array(["digits#14" in source for source in subject.catalogue.sources]),
        f"entropy_max={np.median(table.entropies)}": table.entropies <= np.median(table.entropies),
        "class=3&anchor=true": (labels == 3) & table.is_anchor,
    }
    for query, wanted in cases.items():
        answer = api.get(f"/v1/samples?{query}&limit=100").json()
        order = [i for i in np.argsort(table.entropies, kind="stable") if wanted[i]]
        assert answer["total"] == len(order), query
        assert [s["sample_id"] for s in answer["samples"]] == order[:100]
    later = api.get("/v1/samples?limit=5&offset=140&token=of-another-service").json()
    assert (later["total"], len(later["samples"])) == (143, 3)


def test_vectors_are_searched_in_both_forms(api, features):
    wanted = features[[5, 9]] * np.float32([[3], [0.2]])
    sent = [
        api.post("/v1/search?k=4", json={"vectors": wanted.tolist()}),
        api.post("/v1/search?k=4", content=wanted.tobytes(), headers={"Content-Type": "application/octet-stream"}),
    ]
    for answer in sent:
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [r["neighbours"][0]["sample_id"] for r in results] == [5, 9], "nothing is left out of a search"
        assert results[0]["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert sent[0].json() == sent[1].json()


def test_vectors_of_another_dimension_are_not_taken_for_more_of_them(api):
    def send(**headers):
        headers = {"Content-Type": "application/octet-stream"} | headers
        return api.post("/v1/search?k=1", content=np.ones(32, "<f4").tobytes(), headers=headers)

    problem(send(**{"X-Dim": "32"}), 422, "X-Dim: vectors of 32 numbers, the index holds vectors of 16")
    problem(send(**{"X-Dim": "many"}), 422, "X-Dim: ")
    for headers in ({"X-Dim": "16"}, {}):
        assert len(send(**headers).json()["results"]) == 2


def test_an_image_is_embedded_by_the_model_whose_features_the_index_holds(api, served_run, subject, features):
    import torch

    import andscale

    network, transform = andscale.load_model(served_run.root, 1)
    data = Shards(subject.catalogue).take(17)
    with torch.inference_mode():
        vector = network(transform(data)[None]).numpy()
    expected = np.argsort(-(features @ vector[0]), kind="stable")[:5]
    answer = api.post("/v1/search?k=5", content=data, headers={"Content-Type": "image/png"})
    assert [n["sample_id"] for n in answer.json()["results"][0]["neighbours"]] == expected.tolist()


def test_a_thumbnail_is_the_samples_picture(api, subject):
    answer = api.get("/v1/samples/17/thumbnail?size=64")
    assert answer.headers["content-type"] == "image/webp"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    small = decode_rgb(Shards(subject.catalogue).take(17))
    np.testing.assert_array_equal(picture, small.repeat(8, 0).repeat(8, 1))
    again = api.get("/v1/samples/17/thumbnail?size=64", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_figures_and_rounds(api, served_run, subject):
    stats = api.get("/v1/stats").json()
    assert (stats["round"], stats["num_samples"], stats["dim"], stats["index_kind"]) == (2, 143, 16, "flat")
    assert sum(stats["entropy"]["counts"]) == 143
    assert sum(stats["entropy"]["anchors"]) == stats["num_anchors"] == int(subject.table.is_anchor.sum())
    right = subject.audit_labels[subject.table.neighbour_ids[:, 0]] == subject.audit_labels
    assert stats["purity"]["at_1"] == pytest.approx(right.mean())
    assert stats["limits"] == {"k": 60, "batch": 40, "body_bytes": 20_000, "image_pixels": 10_000}
    assert stats["table"] == {"mode": "exact", "recall_at_1": None, "recall_at_k": None}
    assert stats["has_classes"] is True
    rounds = api.get("/v1/rounds").json()
    assert (rounds["current"], [r["round"] for r in rounds["rounds"]]) == (2, [1, 2])
    older = api.get("/v1/neighbours/17?round=1").json()
    table = open_subject(served_run.root, 1).table
    assert older["round"] == 1
    assert [n["sample_id"] for n in older["neighbours"]] == table.neighbour_ids[17].tolist()
    assert api.get("/v1/stats?round=1").json()["purity"]["at_1"] == pytest.approx(
        (subject.audit_labels[table.neighbour_ids[:, 0]] == subject.audit_labels).mean()
    )


def test_an_approximate_table_is_not_called_exact(api, subject):
    figures = subject.manifest.figures | {"mode": "approximate", "recall_at_1": 0.98, "recall_at_k": 0.9}
    told = replace(subject, manifest=replace(subject.manifest, figures=figures))
    stats = replace(api.service.rounds.current, subject=told).stats
    assert stats["table"] == {"mode": "approximate", "recall_at_1": 0.98, "recall_at_k": 0.9}
    older = replace(subject, manifest=replace(subject.manifest, figures={}))
    assert replace(api.service.rounds.current, subject=older).stats["table"]["mode"] is None
    assert "exact" not in api.get("/openapi.json").json()["paths"]["/v1/neighbours/{sample_id}"]["get"]["description"]


def test_classes_are_known_where_some_samples_have_one(api, subject):
    labels = subject.audit_labels.copy()
    labels[::2] = -1
    stats = replace(api.service.rounds.current, subject=replace(subject, audit_labels=labels)).stats
    assert (stats["labelled"], stats["has_classes"], stats["purity"]) == (False, True, None)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/neighbours/143", 404, "there is no sample 143: ids are 0 to 142"),
        ("/v1/neighbours/-1", 422, "sample_id"),
        ("/v1/neighbours/x", 422, "sample_id"),
        ("/v1/neighbours/1?k=0", 422, "k = 0: 1 to 60"),
        ("/v1/neighbours/1?k=61", 422, "k = 61: 1 to 60"),
        ("/v1/neighbours/1?round=7", 404, "there is no round 7; rounds: 1, 2"),
        ("/v1/neighbours/1?round=1&k=9", 409, "it is not the current round"),
        ("/v1/samples?class=moon", 404, "there is no class 'moon'"),
        ("/v1/samples?limit=101", 422, "limit"),
        ("/v1/samples?entropy_min=nan", 422, "entropy_min: a finite number"),
        ("/v1/samples?class_name=3", 422, "class_name: there is no such parameter; there are key, class, entropy_min"),
        ("/v1/samples?entropy_max=2&a%0Ab=1", 422, "'a\\nb': there is no such parameter"),
        ("/v1/samples/1/thumbnail?size=9999", 422, "size"),
        ("/v2", 404, "see /docs"),
        ("/page/secret.html", 404, "the page consists of"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_its_reason(api, path, status, words):
    problem(api.get(path), status, words)


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b'{"vectors": [[1, 2]]}', "application/json", 422, "every vector has 16 numbers"),
        (b'{"vectors": []}', "application/json", 422, "every vector has 16 numbers"),
        (b'{"vectors": [[' + b"0," * 15 + b"0]]}", "application/json", 422, "number 0 is zero, or not finite"),
        (b'{"vectors": [[' + b"NaN," * 15 + b"1]]}", "application/json", 422, "number 0 is zero, or not finite"),
        (b'{"vectors": [[' + b"1e999," * 15 + b"1]]}", "application/json", 422, "number 0 is zero, or not finite"),
        (b'{"vectors": [[' + b"true," * 15 + b"1]]}", "application/json", 422, "a list of numbers"),
        (b'{"vectors": "x"}', "application/json", 422, "a list of 1 to 40 vectors"),
        (b"[" * 9000, "application/json", 422, "the body is no JSON"),
        (b"[1]", "application/json", 422, "the body is no JSON"),
        (b"\xff", "application/json", 422, "the body is no JSON"),
        (b"12345", "application/octet-stream", 422, "5 bytes are no vectors of 16"),
        (b"", "application/octet-stream", 422, "0 bytes are no vectors"),
        (b"\x00" * 64 * 41, "application/octet-stream", 422, "41 vectors: the limit is 40"),
        (b"GIF89a", "image/gif", 422, "cannot be decoded"),
        (b"x", "text/plain", 415, "Content-Type"),
        (b"x" * 20_001, "application/octet-stream", 413, "larger than the limit of 20000 bytes"),
    ],
)
def test_a_body_that_cannot_be_searched_is_a_problem(api, body, kind, status, words):
    problem(api.post("/v1/search", content=body, headers={"Content-Type": kind}), status, words)


def test_a_body_without_a_length_is_cut_off_at_the_limit(api):
    sent = []

    def endless():
        while len(sent) < 1000:
            sent.append(1)
            yield b"x" * 1000

    answer = api.post("/v1/search", content=endless(), headers={"Content-Type": "application/octet-stream"})
    problem(answer, 413, "larger than the limit of 20000 bytes")


def test_large_images_are_refused_before_they_are_decoded(api):
    out = io.BytesIO()
    Image.new("RGB", (101, 100)).save(out, "PNG")
    answer = api.post("/v1/search", content=out.getvalue(), headers={"Content-Type": "image/png"})
    problem(answer, 413, "the image has 10100 pixels; the limit is 10000")


def test_many_vectors_with_many_neighbours_are_too_much_together(api, features):
    answer = api.post(
        "/v1/search?k=60", content=features[:20].tobytes(), headers={"Content-Type": "application/octet-stream"}
    )
    problem(answer, 422, "20 vectors times k = 60: at most 1000")


def test_other_methods_are_a_problem_too(api):
    problem(api.post("/v1/stats"), 405, "Method Not Allowed")


def test_every_answer_carries_the_headers_that_keep_browsers_careful(api):
    for path in ("/", "/v1/stats", "/nowhere", "/v1/samples/1/thumbnail"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' blob: data:")


def test_the_page_is_three_files(api):
    for path, kind in (("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")):
        answer = api.get(path)
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)


def test_metrics_count_requests_by_route_and_status(served_run):
    with client(served_run.root) as calling:
        for _ in range(3):
            calling.get("/v1/neighbours/1")
        calling.get("/v1/neighbours/999")
        calling.get("/secret/of/a/scanner")
        calling.get("/v1/neighbours/1?k=9")
        text = calling.get("/metrics").text
    assert 'andscale_requests_total{route="/v1/neighbours/{sample_id}",status="200"} 4.0' in text
    assert 'andscale_requests_total{route="/v1/neighbours/{sample_id}",status="404"} 1.0' in text
    assert "scanner" not in text
    assert "andscale_round 2.0" in text
    assert "andscale_search_batch_queries_count 1.0" in text


def test_a_token_opens_all_but_the_page_and_the_health(served_run):
    with client(served_run.root, token="s3cret") as calling:
        for path in ("/v1/stats", "/metrics", "/openapi.json", "/docs", "/nowhere"):
            answer = calling.get(path)
            problem(answer, 401, "Authorization: Bearer TOKEN")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert calling.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert calling.get(path, headers={"Authorization": "Basic s3cret"}).status_code == 401
        assert calling.get("/v1/stats", headers={"Authorization": "bearer s3cret"}).status_code == 200
        assert calling.get("/v1/stats?token=s3cret").status_code == 200
        assert calling.get("/").status_code == calling.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("host", "token", "status"),
    [
        ("localhost:8765", None, 200),
        ("LOCALHOST", None, 200),
        ("127.8.8.8:8765", None, 200),
        ("[::1]:8765", None, 200),
        ("evil.example:8765", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost.evil.example", None, 403),
        ("192.0.2.1:8765", None, 403),
        ("[::1", None, 403),
        ("", None, 403),
        ("evil.example", "t", 200),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_answered(host, token, status):
    """A page of another name, whose owner lets the name lead here, asks as if it were the service's own."""
    guarded = Guard(PlainTextResponse("data"), Limits(), Figures(), token)
    headers = {"Host": host} | ({"Authorization": f"Bearer {token}"} if token else {})
    for path in ("/", "/v1/stats", "/metrics"):
        answer = TestClient(guarded).get(path, headers=headers)
        assert answer.status_code == status
        if status == 403:
            problem(answer, 403, "set a token with ANDSCALE_TOKEN")


def test_others_can_connect_with_a_token_only(monkeypatch):
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_address(host, None)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UsageError, match="lets others connect: choose a secret"):
            check_address(host, None)
        check_address(host, "x")
    monkeypatch.setenv("ANDSCALE_TOKEN", "from-environment")
    assert (token_from_environment(None), token_from_environment("given")) == ("from-environment", "given")
    for bad in ("", "two words", "ümlaut", "line\nbreak"):
        with pytest.raises(UsageError, match="one word of printable ASCII"):
            token_from_environment(bad)


def test_a_table_of_features_alone_is_served_without_labels_and_images(served_run, features, tmp_path, capsys):
    np.save(tmp_path / "features.npy", features)
    assert call("discover", [str(tmp_path / "features.npy"), str(tmp_path / "table"), "--k", "3"]) == 0
    with client(tmp_path / "table") as calling:
        sample = calling.get("/v1/samples/7").json()
        assert [sample[name] for name in ("round", "key", "class", "label", "has_image")] == [None] * 4 + [False]
        assert len(calling.get("/v1/neighbours/7").json()["neighbours"]) == 3
        stats = calling.get("/v1/stats").json()
        assert (stats["purity"], stats["dim"], stats["has_model"]) == (None, None, False)
        assert (stats["has_classes"], stats["table"]["mode"]) == (False, "exact")
        assert calling.get("/v1/rounds").json()["current"] is None
        problem(calling.get("/v1/neighbours/7?k=5"), 409, "name the features with --features")
        problem(calling.post("/v1/search", json={"vectors": [[1]]}), 409, "name the features with --features")
        problem(calling.get("/v1/samples/7/thumbnail"), 404, "has no image")
        problem(calling.get("/v1/samples?class=3"), 409, "no sample has a label")
        problem(calling.get("/v1/samples?key=3"), 409, "there is no data set")
    with client(tmp_path / "table", features=tmp_path / "features.npy") as calling:
        assert len(calling.get("/v1/neighbours/7?k=5").json()["neighbours"]) == 5
        found = calling.post("/v1/search?k=2", json={"vectors": features[[7]].tolist()}).json()["results"][0]
        assert found["neighbours"][0]["sample_id"] == 7
        answer = calling.post("/v1/search", content=b"\x89PNG", headers={"Content-Type": "image/png"})
        problem(answer, 409, "the round's model is not there")


def test_names_from_data_come_out_as_they_are(served_run, monkeypatch):
    with client(served_run.root) as calling:
        catalogue = calling.service.rounds.current.subject.catalogue
        hostile = ["<script>alert(1)</script>", "x" * 300, "two\nlines", "\u202egnp.exe", '"quoted"\\']
        monkeypatch.setitem(catalogue.__dict__, "sources", hostile + catalogue.sources[5:])
        for sample_id, text in enumerate(hostile):
            answer = calling.get(f"/v1/samples/{sample_id}")
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["source"] == text
            assert json.loads(answer.text)["source"] == text
        assert calling.get("/v1/samples", params={"key": "<script>"}).json()["total"] == 1
