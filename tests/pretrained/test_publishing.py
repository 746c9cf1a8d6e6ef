"""What a folder of a model takes along from the checkpoint."""

from etils import epath

from subl_jax.pretrained import publishing, template_files


def test_all_that_tells_text_from_tokens_is_taken_along_and_nothing_of_the_weights(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "additional_chat_templates").mkdir(parents=True)
    taken = {"tokenizer.json", "vocab.json", "generation_config.json", "additional_chat_templates/polite.jinja"}
    left = {"config.json", "model.safetensors", "model.safetensors.index.json", "notes.txt"}
    for name in taken | left:
        (source / name).write_text(f"text of {name}", encoding="utf-8")
    publishing.copy_tokenizer(source, epath.Path(folder))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == taken
    # A template that lies beside the others is still the one that is used.
    template, _ = template_files.find(folder, {})
    assert template == "text of additional_chat_templates/polite.jinja"
