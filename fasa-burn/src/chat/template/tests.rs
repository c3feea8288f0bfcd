use super::*;
use serde_json::json;

const CHATML: &str = "{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

fn template(source: &str) -> ChatTemplate {
    let settings = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}).to_string();
    let settings = TokenizerSettings::from_json(settings.as_bytes(), Path::new("c.json")).unwrap();
    ChatTemplate::new(source, Path::new("t.jinja"), Some(&settings)).unwrap()
}

fn talk(texts: &[&str]) -> Vec<Message> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    roles.zip(texts).map(|(role, text)| Message::new(role, *text)).collect()
}

fn render(source: &str, messages: &[Message]) -> Result<String> {
    template(source).render(messages, &BTreeMap::new())
}

/// Expected texts are those of jinja2 with the settings of `transformers`.
#[test]
fn the_text_is_that_of_jinja2() {
    let system = [&[Message::new(Role::System, "Be brief.")][..], &talk(&["Hi", " Yes? ", "<b>\"é\"&"])].concat();
    let cases = [
        (
            CHATML,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Yes? <|im_end|>\n\
             <|im_start|>user\n<b>\"é\"&<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}\n  {% if loop.first %}\n[{{ messages[0].content }}]\n\
             {% endif %}\n{{ m['content'].strip() | upper }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}\n",
            "<s>[Be brief.]\nHI\nYES?</s>\n<B>\"É\"&\n",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + m.content|length %}{% endfor %}\
             {{ ns.n }} {{ messages[-1].content.split('\"')[1] }} {{ messages[1:][0].role }} {{ tools is none }} {{ x is defined }}\
             {{ messages[0].content }}",
            "24 é user True FalseBe brief.",
        ),
        (
            "{{ messages[3] | tojson }}{{ messages[0] | tojson(indent=1) }}",
            "{\"role\": \"user\", \"content\": \"<b>\\\"é\\\"&\"}{\n \"role\": \"system\",\n \"content\": \"Be brief.\"\n}",
        ),
        (
            "{% macro say(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{% for m in messages %}{% if loop.index0 == 3 %}{% break %}\
             {% endif %}{{ say(m) }}{% generation %}.{%- endgeneration -%}   {% endfor %}",
            "<system>Be brief..<user>Hi.<assistant> Yes? .",
        ),
        (
            "{%- set fold = messages[0].content if messages[0].role == 'system' else '' %}{{ fold.startswith('Be') }}\
             {{ '%s-%d' | format('a', 3) }}{{ messages | map(attribute='role') | join(',') }} {{ fold }}",
            "Truea-3system,user,assistant,user Be brief.",
        ),
    ];
    for (source, want) in cases {
        assert_eq!(render(source, &system).unwrap(), want, "{source}");
    }
}

#[test]
fn arguments_reach_the_template() {
    let source = "{% if think is defined and not think %}off{% endif %}{{ date }}{{ strftime_now('%Y') | length }}";
    let arguments = BTreeMap::from([("think".into(), json!(false)), ("date".into(), json!("1 May"))]);
    assert_eq!(template(source).render(&talk(&["x"]), &arguments).unwrap(), "off1 May4");
    assert_eq!(render(source, &talk(&["x"])).unwrap(), "4");
}

#[test]
fn failures_name_the_template() {
    let cases = [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content }\n}}", ""),
        ("{% for m in messages %}", "no chat template"),
        ("{{ messages[0].nothing.more }}", "line 1"),
        ("{{ strftime_now('%Q') }}", "%Q"),
        ("{{ 'x' | nosuchfilter }}", "nosuchfilter"),
        ("{% include 'passwd' %}", "include"),
        ("{{ messages | tojson(indent=1000000) }}", "tojson"),
    ];
    for (source, part) in cases {
        let message = ChatTemplate::new(source, Path::new("t.jinja"), None)
            .and_then(|template| template.render(&talk(&["x"]), &BTreeMap::new()))
            .expect_err(source)
            .to_string();
        assert!(message.contains("`t.jinja`") && message.contains(part), "{source}: {message}");
    }
    let silent = render("{{ messages[-1].content }}", &[Message::new(Role::System, "Be brief.")]);
    assert!(silent.is_ok());
    let dropped = [&[Message::new(Role::System, "Be brief.")][..], &talk(&["x"])].concat();
    let message = render("{{ messages[-1].content }}", &dropped).unwrap_err().to_string();
    assert!(message.contains("Be brief.") && message.contains("--system"), "{message}");
}

/// Loops in time, loops in memory, recursion: each is stopped.
#[test]
fn a_template_that_does_not_end_is_stopped() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}\
                  {% endfor %}{% endfor %}";
    let doubling =
        "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    let adding = doubling.replace("~", "+");
    let writing = "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}";
    let replacing = "{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s = ns.s.replace('a', 'aaaa') %}\
                     {% endfor %}{{ ns.s }}";
    let joining = "{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s = [ns.s, ns.s] | join(ns.s) %}\
                   {% endfor %}{{ ns.s }}";
    let sets = "{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}\
                {% endfor %}{{ ns.s }}";
    let recursion = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    let repeat = "{{ 'x' * 9999999999 }}";
    for source in [nested, doubling, &adding, writing, replacing, joining, sets, recursion, repeat] {
        let message = render(source, &talk(&["x"])).expect_err(source).to_string();
        assert!(message.contains("`t.jinja`"), "{message}");
    }
    let message = render(nested, &talk(&["x"])).unwrap_err().to_string();
    assert!(message.contains("does not come to an end") && message.contains("--chat-template"), "{message}");
    // A long conversation is no endless loop.
    let long = "word ".repeat(400_000);
    assert!(render(CHATML, &talk(&[long.as_str(), "a", "b"])).is_ok());
}

#[test]
fn templates_are_found_beside_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let found = || {
        let settings = TokenizerSettings::read(folder.path())?;
        ChatTemplate::find(Some(folder.path()), settings.as_ref())
    };
    assert!(found().unwrap().is_none());
    write("tokenizer_config.json", &json!({"bos_token": "<s>"}).to_string());
    assert!(found().unwrap().is_none());
    let text = |template: Option<ChatTemplate>| template.unwrap().render(&talk(&["x"]), &BTreeMap::new()).unwrap();
    write("tokenizer_config.json", &json!({"bos_token": "<s>", "chat_template": "{{ bos_token }}1"}).to_string());
    assert_eq!(text(found().unwrap()), "<s>1");
    write("chat_template.jinja", "{{ bos_token }}2");
    assert_eq!(text(found().unwrap()), "<s>2");
    std::fs::write(folder.path().join("chat_template.jinja"), [0xff]).unwrap();
    let message = found().unwrap_err().to_string();
    assert!(message.contains("chat_template.jinja") && message.contains("UTF-8"), "{message}");
    write("chat_template.jinja", &" ".repeat(5 << 20));
    assert!(found().is_err());
}
