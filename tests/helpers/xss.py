r"""Hostile text, made here by class from patterns and combined: what a model, a file or a folder's name may hold.

Every string that a browser could run sets `window.__xss`; every address is on a closed port of this machine, so that a
request is seen and reaches nobody. In the lists below a line or a broken bar ends an item, and ⏎ is a line break.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import product

RUN = "window.__xss=1"
AT = "//127.0.0.1:9/x"
SCRIPT = f"<script>{RUN}</script>"
IMAGE = f"<img src={AT} onerror={RUN}>"
SVG = f"<svg onload={RUN}>"
BREAKOUT = f"\"'><svg/onload={RUN}>"
_MARKUP = (SCRIPT, IMAGE, SVG, BREAKOUT)


def _list(items: str) -> list[str]:
    """Items of a list; RUN, AT, SCRIPT and IMAGE stand for the above."""
    for name in ("RUN", "AT", "SCRIPT", "IMAGE"):
        items = re.sub(rf"\b{name}\b", lambda _, name=name: globals()[name], items)
    return [item.replace("⏎", "\n") for item in re.split(r" ¦ |\n", items.strip("\n"))]


def _filled(forms: str, bodies: list[str] | tuple[str, ...]) -> Iterator[str]:
    """Every body in every form, in the place of ◊."""
    yield from (form.replace("◊", body) for form, body in product(_list(forms), bodies))


def _scripts() -> Iterator[str]:
    names = (
        "script ¦ SCRIPT ¦ ScRiPt ¦ script/ ¦ script⏎ ¦ script\t ¦ script\f ¦ script x=y ¦ scr<script>ipt ¦ svg:script"
    )
    names += " ¦ \0script ¦ scr\0ipt ¦ script/x ¦ script\x0b ¦ \u017fcript"
    forms = "<◊>RUN</script> ¦ <◊>RUN<!-- ¦ <◊ type=module>RUN</script> ¦ <◊ src=AT></script> ¦ <<◊>RUN//<</script>"
    yield from _filled(forms, _list(names))


def _encodings() -> Iterator[str]:
    coded = ("&#{};", "&#x{:x};", "&#{:07}", "%{:02x}", "%25{:02X}", "\\u{:04x}", "\\x{:02x}", "\\{:o}", "&#0{};&zwj;")
    angles = "&lt;◊&gt; ¦ &lt◊&gt ¦ &amp;lt;◊&amp;gt; ¦ +ADw-◊+AD4- ¦ \uff1c◊\uff1e ¦ \u2039◊\u203a"
    angles += " ¦ \xc0\xbc◊\xc0\xbe ¦ \xe0\x80\xbc◊\xe0\x80\xbe ¦ \\<◊\\> ¦ <\u200b◊>"
    for text in _MARKUP:
        yield from ("".join(form.format(ord(letter)) for letter in text) for form in coded)
        for pair in _list(angles):
            low, high = pair.split("◊")
            yield text.replace("<", low).replace(">", high)
        yield b64encode(text.encode()).decode()


def _handlers() -> Iterator[str]:
    elements = "img src=x ¦ svg ¦ body ¦ video src=x ¦ audio src=x ¦ input ¦ details open ¦ marquee ¦ iframe"
    elements += " ¦ a href=# ¦ object data=x ¦ math ¦ style ¦ select ¦ button ¦ td ¦ x ¦ custom-tag"
    events = "onerror ¦ onload ¦ onclick ¦ autofocus onfocus ¦ onmouseover ¦ ontoggle ¦ onpointerenter"
    forms = _list("<◊=RUN> ¦ <◊=\"RUN\"> ¦ </◊='RUN'> ¦ <◊\t=⏎RUN  ¦ <\x0c◊\x0c=RUN//>")
    for number, (element, event) in enumerate(product(_list(elements), _list(events))):
        yield forms[number % len(forms)].replace("◊", f"{element} {event}")


def _breakouts() -> Iterator[str]:
    quotes = ('"', "'", "`", "", "&quot;", "&#39;", '\\"', "\\'", "\"'`", "\u201d", "\uff02", '\0"')
    tails = (
        f" onmouseover={RUN} x=",
        f" autofocus onfocus={RUN} y=",
        f";{RUN};//",
        f">{IMAGE}",
        f"/>{SCRIPT}",
        " style=x",
    )
    yield from (quote + tail for quote, tail in product(quotes, tails))


def _closers() -> Iterator[str]:
    elements = (
        "html head title style script noscript body header nav main section footer h1 h2 h3 h4 p code pre ul ol li"
    )
    elements += " span div details summary figure figcaption svg g rect line text path circle table caption thead tbody"
    elements += (
        " tr th td button form label select option input a textarea template iframe xmp plaintext noembed noframes"
    )
    for element in elements.split():
        yield from (f"</{element}>{SCRIPT}", f"</{element.upper()} \n>{IMAGE}")
    yield from _filled(
        "-->◊ ¦ --!>◊ ¦ <!-->◊ ¦ <!--->◊ ¦ ]]>◊ ¦ ?>◊ ¦ %>◊ ¦ */◊ ¦ --><!--◊ ¦ <!--◊ ¦ <![CDATA[◊", _MARKUP
    )
    yield from _filled("<?xml ◊ ¦ <!DOCTYPE ◊ ¦ <%◊ ¦ <!◊ ¦ </◊ ¦ <//◊", _MARKUP)


def _addresses() -> Iterator[str]:
    schemes = """javascript:RUN ¦ JaVaScRiPt:RUN ¦ java\tscript:RUN ¦ java⏎script:RUN ¦ \x01javascript:RUN
vbscript:RUN
&#106;avascript:RUN ¦ &#x6A&#x61vascript:RUN ¦ java&Tab;script:RUN ¦ javascript&colon;RUN ¦ javascript://%0a;RUN
blob:RUN
\u00a0javascript:RUN ¦ javascript\0:RUN ¦ livescript:RUN ¦ data:text/html,SCRIPT ¦ data:image/svg+xml,<svg onload=RUN>
data:text/html;base64,PHNjcmlwdD53aW5kb3cuX194c3M9MTwvc2NyaXB0Pg== ¦ AT ¦ http:AT ¦ file:AT ¦ \\\\127.0.0.1\\x"""
    forms = '◊ ¦ <a href="◊">x</a> ¦ <iframe src=\'◊\'> ¦ "href="◊ ¦ <svg><a xlink:href=◊><rect /></a>'
    yield from _filled(forms, _list(schemes))


def _namespaces() -> Iterator[str]:
    inner = _list("SCRIPT ¦ IMAGE ¦ <style><!--</style>IMAGE ¦ <title>IMAGE ¦ <a href=javascript:RUN>x")
    outer = "<svg>◊ ¦ <math>◊ ¦ <svg><foreignObject>◊ ¦ <math><mtext>◊ ¦ <svg><desc>◊ ¦ <svg><style>◊ ¦ <svg></p>◊"
    outer += " ¦ <math><annotation-xml encoding=text/html>◊ ¦ <math><mi><mglyph>◊"
    outer += " ¦ <form><math><mtext></form><form><mglyph><style></math>◊"
    yield from _filled(outer, inner)
    yield from _list("""<svg><animate onbegin=RUN attributeName=x dur=1s>
<svg><set attributeName=href to=javascript:RUN> ¦ <svg><use href='data:image/svg+xml,<svg id=x onload=RUN />#x'>
<svg xmlns:x="http://www.w3.org/1999/xlink"><script x:href=AT />""")


def _mutations() -> Iterator[str]:
    holders = "noscript style textarea title xmp iframe noembed noframes template plaintext select listing"
    yield from _filled('<◊><p title="</◊>IMAGE"> ¦ <◊><◊/></◊>IMAGE ¦ <◊><!--</◊>IMAGE-->', holders.split())


def _templates() -> Iterator[str]:
    bodies = "7*7 ¦ config ¦ ''.__class__.__mro__[1].__subclasses__() ¦ constructor.constructor('RUN')() ¦ self._a.b"
    bodies += " ¦ cycler.__init__.__globals__.os.popen('id').read() ¦ $on.constructor('RUN')()"
    marks = (
        "{{◊}} ¦ {% print(◊) %} ¦ {# ◊ #} ¦ ${◊} ¦ #{◊} ¦ <%= ◊ %> ¦ {{{◊}}} ¦ [[◊]] ¦ @(◊) ¦ *{◊} ¦ `${◊}` ¦ <?= ◊ ?>"
    )
    yield from _filled(marks, _list(bodies))
    yield from _list("""{% raw %}{% endraw %}{% include '/etc/passwd' %}
{% for x in range(9999999999) %}x{% endfor %}
<div ng-app ng-csp>{{$eval.constructor('RUN')()}}</div> ¦ <p v-html="'IMAGE'"> ¦ <x :is="'script'"> ¦ {%- endif -%}""")


def _styles() -> Iterator[str]:
    rules = "background:url(AT) ¦ width:expression(RUN) ¦ behavior:url(AT) ¦ list-style-image:url('javascript:RUN')"
    rules += " ¦ -moz-binding:url(AT) ¦ position:fixed;inset:0;z-index:9999 ¦ content:url(AT) ¦ animation:x 1s"
    yield from _filled(
        "◊ ¦ <p style='◊'> ¦ \" style=\"◊ ¦ <style>*{◊}</style> ¦ } * { ◊ } ¦ </style><style>*{◊}", _list(rules)
    )
    yield from _list("""<style>@import url(AT);</style> ¦ <style>@import 'AT';</style> ¦ <link rel=stylesheet href=AT>
<style>@font-face{font-family:x;src:url(AT)}body{font-family:x}</style>""")


def _loaders() -> Iterator[str]:
    contents = _list("0;url=AT ¦ 0;url=javascript:RUN ¦ default-src *")
    kinds = "refresh ¦ REFRESH ¦ set-cookie ¦ Content-Security-Policy"
    yield from (f'<meta http-equiv="{kind}" content="{content}">' for kind, content in product(_list(kinds), contents))
    yield from _filled("<base href=◊> ¦ <base target=◊>", _list("AT ¦ javascript:RUN// ¦ / ¦ data:,"))
    yield from _filled(
        "<form action=AT><input type=submit ◊> ¦ <form method=post action=AT><button ◊>", ["", "autofocus"]
    )
    yield from _list("""<iframe src=AT> ¦ <frame src=AT> ¦ <embed src=AT> ¦ <object data=AT> ¦ <img src=AT>
<a ping=AT href=#>
<img srcset=AT> ¦ <image href=AT> ¦ <video poster=AT> ¦ <audio autoplay src=AT> ¦ <picture><source srcset=AT><img>
<video><track default src=AT> ¦ <input type=image src=AT> ¦ <body background=AT> ¦ <table background=AT>
<portal src=AT>
<link rel=prefetch href=AT> ¦ <link rel=manifest href=AT> ¦ <link rel=import href=AT> ¦ <applet archive=AT>
<bgsound src=AT>
<iframe srcdoc="SCRIPT"> ¦ <iframe srcdoc='&lt;script&gt;parent.RUN&lt;/script&gt;'>
<button form=filters formaction=AT>
<a id=data></a><a id=data name=textContent href=x> ¦ <form id=data><input name=textContent>
<p id="rows"></p><p id="main">""")


def _script_data() -> Iterator[str]:
    ends = (
        '"',
        "'",
        '\\"',
        '\\\\"',
        '"]',
        '"}]',
        '"]}',
        "\\",
        "\\u0022",
        "\u2028",
        "\u2029",
        "\n",
        "\r",
        "\\\u2028",
        "`",
    )
    bodies = _list(";RUN;// ¦ +(RUN)+ ¦ </script>SCRIPT ¦ <!--<script>RUN")
    yield from (end + body for end, body in product(ends, bodies))
    yield from _list("""<!--<script> ¦ <!-- <script ¦ </script ¦ </SCRIPT\t ¦ <\\/script> ¦ {"__proto__": {"__xss": 1}}
__proto__ ¦ constructor ¦ toString ¦ NaN ¦ 1e999 ¦ //# sourceMappingURL=AT ¦ import('AT')""")


def _unicode() -> Iterator[str]:
    letters = "\0\x01\x08\x0b\x0c\x0e\x1a\x7f\x80\x85\x9b\xa0\xad\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2028"
    letters += "\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2069\u2800\u3000\ufdd0\ufeff\ufff9\ufffc\ufffd"
    letters += "\ufffe\uffff\ud800\udbff\udc00\udfff\U0001d173\U000e0001\U000e0041\U0010ffff"
    for letter in letters:
        yield from (f"a{letter}b", f"<{letter}script>{RUN}</script>", f"{letter}{BREAKOUT}")
    yield from (
        f"<scr\u0456pt>{RUN}</scr\u0456pt>",
        f"\uff1c\u017fcript\uff1e{RUN}",
        "\u202egpj.exe",
        "e" + "\u0300" * 60,
    )
    yield from (
        "\ud800\ud800<b>",
        "\udc00\ud800",
        "\ufeff<script>",
        "\ufffe\uffff",
        "\U0001f469\u200d\U0001f680",
        "\ufdfd" * 30,
    )


def _markdown() -> Iterator[str]:
    targets = _list("javascript:RUN ¦ http:AT ¦ data:text/html,SCRIPT ¦ #main ¦ <x y>")
    yield from _filled(
        '[x](◊) ¦ ![x](◊) ¦ [x](◊ "y") ¦ [x][y]⏎⏎[y]: ◊ ¦ <◊> ¦ [![x](◊)](y) ¦ \\[x](◊) ¦ [x\\](◊)', targets
    )
    yield from _list("""a|b|c ¦ a\\|b ¦ a\\\\|b ¦ |---|⏎|---| ¦ a⏎b ¦ a\r⏎b\r⏎\r⏎# c ¦ `|` ¦ ``|``` ` ¦ \\ ¦ a\\
|| ¦ | |⏎
&#124; ¦ &vert; ¦ # x ¦ > x ¦ - x ¦ + x ¦ * x ¦ 1. x ¦ 1) x ¦ --- ¦ *** ¦ === ¦ \tx ¦     x ¦ ```⏎x⏎``` ¦ ~~~⏎x
<!-- x
<details><summary>x ¦ - [ ] x ¦ [^1]: x ¦ : x ¦ $$x$$ ¦ $`x`$ ¦ ~~x~~ ¦ **x ¦ __x__ ¦ _x_ ¦ `x ¦ `` ¦ <b>x</b>
<br/> ¦ #1
&copy; &#60;b&#62; ¦ @octocat ¦ a @octocat b ¦ x@example.org ¦ www.example.org ¦ WWW.example.org ¦ http:AT
see https:AT.
ftp:AT ¦ GH-1 ¦ {: .x} ¦ ::: x ¦ !!! note ¦ mailto:x@example.org ¦ - ¦ + ¦ 1. ¦ -⏎- ¦ x⏎=== ¦ x⏎---""")


def _latex() -> Iterator[str]:
    commands = _list(r"""\input{/etc/passwd} ¦ \include{x} ¦ \write18{id} ¦ \immediate\write18{id}
\openin5=/etc/passwd
\href{javascript:x}{y} ¦ \url{x} ¦ \csname input\endcsname{x} ¦ \def\x{\x}\x ¦ \catcode`\%=12 ¦ \end{tabular}
\end{document}
\begin{verbatim} ¦ \verb|x| ¦ \loop\iftrue\repeat ¦ \directlua{os.execute('id')} ¦ \special{x} ¦ \\[2cm] ¦ \hline
\multicolumn{2}{c}{x} ¦ ^^5cinput{x} ¦ ^^5c^^5c ¦ \usepackage{x} ¦ \newread\x ¦ \par ¦ \^^M""")
    yield from commands
    yield from _filled(r"x} ◊ ¦ x & ◊ ¦ % ⏎◊ ¦ $◊ ¦ \\ ◊", commands[:8])
    yield from _list(
        r"""a & b ¦ 100 % ¦ $x$ ¦ x_1^2 ¦ ~ ¦ { ¦ } ¦ {{ ¦ }} ¦ \\\\ ¦ \\\\* ¦ [ ¦ ] ¦ -- ¦ '' ¦ ?` ¦ !` ¦ << ¦ >>
" ¦ %"""
    )


def _formulas() -> Iterator[str]:
    starts = [
        "=",
        "+",
        "-",
        "@",
        "\t=",
        "\r=",
        "\n=",
        " =",
        "'=",
        '"=',
        "|",
        "%",
        "\uff1d",
        "\uff0b",
        "\uff0d",
        "\uff20",
    ]
    starts += ["\0=", "\ufeff=", "\u200b=", "\xa0=", "x;=", "x;  @", "x\t=", 'x";=', "x,=", "-1+", "+-@=", ";=", ";;+"]
    bodies = _list('1+1 ¦ cmd|\' /C calc\'!A0 ¦ HYPERLINK("http:AT","y") ¦ WEBSERVICE("http:AT") ¦ SUM(1;2)*A1')
    yield from (start + body for start, body in product(starts, bodies))


def _workflows() -> Iterator[str]:
    names = (
        "set-output name=x ¦ error ¦ warning file=a,line=1 ¦ add-mask ¦ stop-commands ¦ save-state name=x ¦ add-path"
    )
    forms = "::◊::x ¦ \t::◊::x ¦ x⏎::◊::x ¦ ##[◊]x ¦ x ##[◊]x ¦ ##vso[task.◊;]x ¦ \u2003::◊::x ¦ ::◊ ::%0A::error::y"
    yield from _filled(forms, _list(names))
    yield from _list(""":: ¦ ::: ¦ x\r::error::y ¦ x\x0b::error::y ¦ x\x85::error::y ¦ x\u2028::error::y
::endgroup:: ¦ ###[error]
##teamcity[buildStatus text='x'] ¦ %0A::error::x""")


def _escapes() -> Iterator[str]:
    codes = """[31m ¦ [2J ¦ [H ¦ [1A ¦ [2K ¦ [?25l ¦ [?1049h ¦ [6n ¦ [c ¦ [5n ¦ ]0;x\x07 ¦ ]0;x\x1b\\
]52;c;eA==\x07 ¦ c ¦ (0 ¦ 7
]8;;http:AT\x07y\x1b]8;;\x07 ¦ ]1337;File=:x\x07 ¦ P+q\x1b\\ ¦ _x\x1b\\ ¦ ^x\x1b\\ ¦ #8 ¦ %G"""
    yield from (f"\x1b{code}x" for code in _list(codes))
    yield from (f"\x9b{code[1:]}x" for code in _list(codes)[:10])
    yield from (
        "\x9d0;x\x9c",
        "\x90x\x9c",
        "a\rb",
        "a\bb",
        "a\x07b",
        "\x0e\x0f",
        "\x1b",
        "\x1b\x1b[31m",
        "\x1b]",
        "\t" * 40,
    )


def _console_markup() -> Iterator[str]:
    tags = """red ¦ bold ¦ / ¦ /red ¦ link=http:AT ¦ /link ¦ @click=app.bell ¦ on red blink ¦ # ¦ [ ¦ ] ¦ no style
x\\ ¦ conceal"""
    yield from _filled("[◊]x ¦ [◊]x[/◊]", _list(tags))
    yield from _list("""[red ¦ red] ¦ \\[red]x ¦ \\\\[red]x ¦ [[red]]x ¦ [] ¦ [/] ¦ :smile: ¦ :bomb: x
{task.description} ¦ {} ¦ {0}
{task.__class__} ¦ %s ¦ %(x)s ¦ %n ¦ $(id) ¦ `id` ¦ ${PATH} ¦ ; id ¦ | id ¦ && id ¦ > x""")


def _names() -> Iterator[str]:
    yield from _list("""../../etc/passwd ¦ ..\\..\\x ¦ /etc/passwd ¦ C:\\x ¦ CON ¦ nul.txt ¦ . ¦ .. ¦ ~root ¦ -rf
--help ¦ x\0.json
file:///etc/passwd ¦ x. ¦ x/ ¦ x?y#z ¦ %2e%2e%2f ¦ a:b ¦ a: b ¦ a: b: c ¦ * ¦ ? ¦ null ¦ None ¦ true ¦ 0 ¦ -0 ¦ 1e5
inf ¦ a'b"c
& ¦ < ¦ > ¦ &lt; ¦ &amp;amp; ¦ &notit; ¦ &#0; ¦ &#x110000; ¦ &#xd800; ¦ &#128; ¦ &y; ¦ <![CDATA[x]]> ¦ ]]>
</system-out>
</testsuites> ¦ " failures="0 ¦ <x:y xmlns:x='z'/> ¦ <?xml version="1.0"?><x>
<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]>&y;""")
    yield from ("x" * 3000, "\u00e9" * 300, " x ")


_CLASSES = {
    "script elements": _scripts,
    "encodings": _encodings,
    "event handlers": _handlers,
    "attribute breakouts": _breakouts,
    "closing of elements, comments and sections": _closers,
    "addresses": _addresses,
    "SVG and MathML": _namespaces,
    "nesting that parsers repair": _mutations,
    "template languages": _templates,
    "styles": _styles,
    "elements that load, send or navigate": _loaders,
    "script data": _script_data,
    "Unicode": _unicode,
    "Markdown": _markdown,
    "LaTeX": _latex,
    "formulas": _formulas,
    "commands to CI systems": _workflows,
    "terminal escapes": _escapes,
    "console markup and shell": _console_markup,
    "names, entities and XML": _names,
}

#: Class -> its strings; no string is in two classes.
BY_CLASS: dict[str, tuple[str, ...]] = {}
_seen: set[str] = set()
for _name, _made in _CLASSES.items():
    BY_CLASS[_name] = tuple(dict.fromkeys(text for text in _made() if text not in _seen))
    _seen.update(BY_CLASS[_name])
ALL = tuple(text for texts in BY_CLASS.values() for text in texts)
