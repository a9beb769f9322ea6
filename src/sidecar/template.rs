//! The named chat templates: Jinja written from the published prompt formats.

/// Instruction and response under headings (Stanford Alpaca).
const ALPACA: &str = r"{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}
{%- elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}
{%- elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{%- endif %}
";

/// Turns between `im_start` and `im_end` (OpenAI's ChatML).
const CHATML: &str = r"{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}
";

/// Turns after their role in bars; only the user's turn has no end token (LG EXAONE 3).
const EXAONE: &str = r"{%- if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{%- endif %}
{%- for message in messages %}
{{- '[|' + message['role'] + '|]' + message['content'] }}
{%- if message['role'] != 'user' %}{{ '[|endofturn|]' }}{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{%- endif %}
";

/// Turns under header tokens, ended by `eot_id` (Meta Llama 3).
const LLAMA3: &str = r"{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
";

/// The user's turns between `INST` marks; the system message precedes the first one (Mistral
/// instruct).
const MISTRAL: &str = r"{{- bos_token }}
{%- set said = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{%- set said.system = message['content'] + '\n\n' %}
{%- elif message['role'] == 'user' %}
{{- '[INST] ' + said.system + message['content'] + ' [/INST]' }}
{%- set said.system = '' %}
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}
";

/// Returns the template called `name`, one of [`CHAT_TEMPLATES`](crate::recipe::CHAT_TEMPLATES).
pub fn preset(name: &str) -> Option<&'static str> {
    Some(match name {
        "alpaca" => ALPACA,
        "chatml" => CHATML,
        "exaone" => EXAONE,
        "llama3" => LLAMA3,
        "mistral" => MISTRAL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::CHAT_TEMPLATES;

    #[test]
    fn every_name_that_a_recipe_may_give_has_a_balanced_template() {
        for name in CHAT_TEMPLATES {
            let text = preset(name).unwrap_or_else(|| panic!("{name} has none"));
            let count = |part: &str| text.matches(part).count();
            assert_eq!(count("{{"), count("}}"), "{name}");
            assert_eq!(count("{%"), count("%}"), "{name}");
            assert_eq!(count("{%- if "), count("{%- endif"), "{name}");
            assert_eq!(count("{%- for "), count("{%- endfor"), "{name}");
            assert!(text.contains("message['content']"), "{name}");
        }
        assert_eq!(preset("none"), None);
    }
}
