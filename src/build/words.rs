//! Words and variables as the Dockerfile reference has them ("Environment replacement"): what the
//! parser leaves to whoever knows the variables.

use super::pattern::Pattern;

/// Looks a variable up.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Why a word has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A quote or a brace is never closed.
    #[error("'{0}' is never closed")]
    Unclosed(char),
    /// There is no variable name.
    #[error("'${{' is followed by no name of a variable")]
    NoName,
    /// The modifier is none.
    #[error("'${{{name}{modifier}…}}' is not understood")]
    Modifier {
        /// The variable.
        name: String,
        /// What follows its name.
        modifier: String,
    },
    /// `${name:?message}` of a variable without a value.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What its user says.
        message: String,
    },
    /// A part of `NAME=value` is missing.
    #[error("'{0}' is not NAME=value")]
    NoValue(String),
}

/// Expands and unquotes.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    /// The character that takes the meaning from the next.
    pub escape: char,
    /// The variables.
    pub lookup: &'a Lookup<'a>,
}

/// What is done with quotes and escapes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// They are removed.
    Remove,
    /// They are contents, as in a here-document.
    Keep,
}

impl Expander<'_> {
    /// The value of a word.
    ///
    /// # Errors
    /// When it is malformed, or a variable that must be there is not.
    pub fn word(&self, text: &str) -> Result<String, WordError> {
        self.expand(text, Quotes::Remove)
    }

    /// The contents of a here-document: variables are replaced, nothing is unquoted.
    ///
    /// # Errors
    /// As [`Self::word`].
    pub fn document(&self, text: &str) -> Result<String, WordError> {
        self.expand(text, Quotes::Keep)
    }

    /// `NAME=value` pairs, or the old form of one name and the rest of the line as its value.
    ///
    /// # Errors
    /// As [`Self::word`], and when a word has no `=`.
    pub fn pairs(&self, text: &str) -> Result<Vec<(String, String)>, WordError> {
        let words = split(text, self.escape);
        let first = words.first().map(String::as_str).unwrap_or_default();
        if !first.contains('=') {
            let rest = text.trim_start();
            let rest = rest.get(first.len()..).unwrap_or_default().trim_start();
            if rest.is_empty() {
                return Err(WordError::NoValue(first.to_owned()));
            }
            return Ok(vec![(self.word(first)?, self.word(rest)?)]);
        }
        let pair = |word: &String| {
            let (name, value) = word
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| WordError::NoValue(word.clone()))?;
            Ok((self.word(name)?, self.word(value)?))
        };
        words.iter().map(pair).collect()
    }

    fn expand(&self, text: &str, quotes: Quotes) -> Result<String, WordError> {
        let mut chars = Chars::of(text);
        let mut out = String::new();
        while let Some(next) = chars.next() {
            match next {
                '\'' if quotes == Quotes::Remove => loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(inner) => out.push(inner),
                        None => return Err(WordError::Unclosed('\'')),
                    }
                },
                '"' if quotes == Quotes::Remove => self.double_quoted(&mut chars, &mut out)?,
                '$' => self.variable(&mut chars, &mut out)?,
                escape if escape == self.escape => match chars.next() {
                    Some('$') => out.push('$'),
                    Some(escaped) if quotes == Quotes::Remove => out.push(escaped),
                    Some(escaped) => out.extend([escape, escaped]),
                    None => out.push(escape),
                },
                other => out.push(other),
            }
        }
        Ok(out)
    }

    fn double_quoted(&self, chars: &mut Chars<'_>, out: &mut String) -> Result<(), WordError> {
        loop {
            match chars.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(chars, out)?,
                Some(escape) if escape == self.escape => match chars.next() {
                    Some(escaped) if escaped == '"' || escaped == '$' || escaped == escape => {
                        out.push(escaped);
                    }
                    Some(other) => out.extend([escape, other]),
                    None => return Err(WordError::Unclosed('"')),
                },
                Some(other) => out.push(other),
                None => return Err(WordError::Unclosed('"')),
            }
        }
    }

    /// After a `$`.
    fn variable(&self, chars: &mut Chars<'_>, out: &mut String) -> Result<(), WordError> {
        let in_braces = chars.peek() == Some('{');
        if in_braces {
            chars.next();
        }
        let name = chars.name();
        if name.is_empty() {
            if in_braces {
                return Err(WordError::NoName);
            }
            out.push('$');
            return Ok(());
        }
        let value = (self.lookup)(&name);
        if !in_braces {
            out.push_str(&value.unwrap_or_default());
            return Ok(());
        }
        let inner = self.until_brace(chars)?;
        out.push_str(&self.modified(&name, value, &inner)?);
        Ok(())
    }

    /// What is between here and the brace that closes.
    fn until_brace(&self, chars: &mut Chars<'_>) -> Result<String, WordError> {
        let mut inner = String::new();
        let mut depth = 0;
        while let Some(next) = chars.next() {
            match next {
                '}' if depth == 0 => return Ok(inner),
                '}' => depth -= 1,
                '{' if inner.ends_with('$') => depth += 1,
                escape if escape == self.escape => {
                    inner.push(escape);
                    inner.extend(chars.next());
                    continue;
                }
                _ => {}
            }
            inner.push(next);
        }
        Err(WordError::Unclosed('{'))
    }

    /// `${name…}`
    fn modified(
        &self,
        name: &str,
        value: Option<String>,
        inner: &str,
    ) -> Result<String, WordError> {
        let unknown = || WordError::Modifier {
            name: name.to_owned(),
            modifier: inner.to_owned(),
        };
        let (modifier, filled) = match inner.strip_prefix(':') {
            // With the colon an empty value counts as none.
            Some(rest) => (rest, value.clone().filter(|value| !value.is_empty())),
            None => (inner, value.clone()),
        };
        let mut rest = modifier.chars();
        let kind = rest.next();
        let argument = rest.as_str();
        match kind {
            None if inner.is_empty() => Ok(value.unwrap_or_default()),
            Some('-') => filled.map_or_else(|| self.word(argument), Ok),
            Some('+') => filled.map_or_else(|| Ok(String::new()), |_| self.word(argument)),
            Some('?') => match filled {
                Some(value) => Ok(value),
                None => Err(WordError::Required {
                    name: name.to_owned(),
                    message: match self.word(argument)? {
                        message if message.is_empty() => "it must have a value".to_owned(),
                        message => message,
                    },
                }),
            },
            Some('#' | '%' | '/') if !inner.starts_with(':') => {
                let value = value.unwrap_or_default();
                cut(&value, modifier, |part| self.word(part))?.ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }
}

/// `${name#pattern}`, `##`, `%`, `%%`, `/pattern/text` and `//pattern/text`; `None` if the pattern is
/// none.
fn cut(
    value: &str,
    modifier: &str,
    word: impl Fn(&str) -> Result<String, WordError>,
) -> Result<Option<String>, WordError> {
    let (kind, twice) = (modifier.chars().next(), modifier.get(1..2));
    let twice = twice.is_some_and(|second| kind.is_some_and(|kind| second.starts_with(kind)));
    let argument = modifier.get(1 + usize::from(twice)..).unwrap_or_default();
    if kind == Some('/') {
        let (pattern, text) = argument.split_once('/').unwrap_or((argument, ""));
        let Some(pattern) = Pattern::anywhere(&word(pattern)?) else {
            return Ok(None);
        };
        return Ok(Some(pattern.replace(value, &word(text)?, twice)));
    }
    let Some(pattern) = Pattern::text(&word(argument)?) else {
        return Ok(None);
    };
    let boundaries = value.char_indices().map(|(at, _)| at).chain([value.len()]);
    let mut places: Vec<_> = boundaries.collect();
    // The shortest part that fits goes, or with the character twice the longest.
    if (kind == Some('#')) == twice {
        places.reverse();
    }
    for at in places {
        let (head, tail) = value.split_at(at);
        let (part, rest) = if kind == Some('#') {
            (head, tail)
        } else {
            (tail, head)
        };
        if pattern.matches(part.as_bytes()) {
            return Ok(Some(rest.to_owned()));
        }
    }
    Ok(Some(value.to_owned()))
}

/// Splits at white space that is not quoted or escaped; quotes and escapes stay.
pub fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            space if space.is_whitespace() && quote.is_none() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            '\'' | '"' if quote == Some(next) => quote = None,
            '\'' | '"' if quote.is_none() => quote = Some(next),
            // In single quotes it is a character as any other.
            escaping if escaping == escape && quote != Some('\'') => {
                word.push(escaping);
                word.extend(chars.next());
                continue;
            }
            _ => {}
        }
        word.push(next);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Characters of a text, with a look at the next.
struct Chars<'a>(std::iter::Peekable<std::str::Chars<'a>>);

impl<'a> Chars<'a> {
    fn of(text: &'a str) -> Self {
        Self(text.chars().peekable())
    }

    fn next(&mut self) -> Option<char> {
        self.0.next()
    }

    fn peek(&mut self) -> Option<char> {
        self.0.peek().copied()
    }

    /// The name of a variable: letters, digits and `_`, or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(next) = self
            .0
            .next_if(|next| next.is_ascii_alphanumeric() || *next == '_')
        {
            let is_positional = name.is_empty() && next.is_ascii_digit();
            name.push(next);
            if is_positional {
                break;
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "a" => Some("A".into()),
            "empty" => Some(String::new()),
            "path" => Some("/usr/local/lib/x.tar.gz".into()),
            _ => None,
        }
    }

    fn word(text: &str) -> Result<String, WordError> {
        Expander {
            escape: '\\',
            lookup: &lookup,
        }
        .word(text)
    }

    #[test]
    fn words_have_values() {
        for (text, value) in [
            ("plain", "plain"),
            ("$a$a", "AA"),
            ("${a}b", "Ab"),
            ("$ab", ""),
            ("$none", ""),
            ("'$a'", "$a"),
            ("\"$a b\"", "A b"),
            (r"\$a", "$a"),
            (r#""\$a \n""#, r"$a \n"),
            (r"a\ b", "a b"),
            ("${none:-x y}", "x y"),
            ("${none:-$a}", "A"),
            ("${none:-${none:-${a}}}", "A"),
            ("${empty:-x}", "x"),
            ("${empty-x}", ""),
            ("${none-x}", "x"),
            ("${a:+x}", "x"),
            ("${empty:+x}", ""),
            ("${empty+x}", "x"),
            ("${none+x}", ""),
            ("${a:?gone}", "A"),
            ("${path#*/}", "usr/local/lib/x.tar.gz"),
            ("${path##*/}", "x.tar.gz"),
            ("${path%.*}", "/usr/local/lib/x.tar"),
            ("${path%%.*}", "/usr/local/lib/x"),
            ("${path/l/L}", "/usr/Local/lib/x.tar.gz"),
            ("${path//l/L}", "/usr/LocaL/Lib/x.tar.gz"),
            ("100%$", "100%$"),
            ("$-", "$-"),
        ] {
            assert_eq!(word(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn malformed_words_are_told() {
        for (text, told) in [
            ("'a", "''' is never closed"),
            ("\"a", "'\"' is never closed"),
            ("${a", "'{' is never closed"),
            ("${}", "'${' is followed by no name of a variable"),
            ("${a!b}", "'${a!b…}' is not understood"),
            ("${none:?say it}", "none: say it"),
            ("${none?}", "none: it must have a value"),
        ] {
            assert_eq!(word(text).unwrap_err().to_string(), told, "{text}");
        }
    }

    #[test]
    fn here_documents_keep_their_quotes() {
        let expander = Expander {
            escape: '\\',
            lookup: &lookup,
        };
        let text = expander.document("'$a' \"${a}\" \\$a \\n\n").unwrap();
        assert_eq!(text, "'A' \"A\" $a \\n\n");
    }

    #[test]
    fn the_escape_character_is_the_files() {
        let expander = Expander {
            escape: '`',
            lookup: &lookup,
        };
        assert_eq!(expander.word("`$a \\$a"), Ok("$a \\A".to_owned()));
        assert_eq!(split("a` b c", '`'), ["a` b", "c"]);
    }

    #[test]
    fn pairs_in_both_forms() {
        let expander = Expander {
            escape: '\\',
            lookup: &lookup,
        };
        let pairs = |text: &str| expander.pairs(text).unwrap();
        let of = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            pairs.iter().map(own).collect()
        };
        assert_eq!(
            pairs("x=1 y=\"a b\" z=c\\ d e="),
            of(&[("x", "1"), ("y", "a b"), ("z", "c d"), ("e", "")])
        );
        assert_eq!(pairs("x  some $a words "), of(&[("x", "some A words ")]));
        assert!(expander.pairs("alone").is_err());
        assert!(expander.pairs("a=b alone").is_err());
    }
}
