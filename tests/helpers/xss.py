r"""Hostile text by class: what a model, a file or a folder's name may hold.

Every string that a browser could run sets `window.__xss`; every address is on a closed port of this machine, so that a
request is seen and reaches nobody. In the lists below a line or a broken bar ends an item, and ⏎ is a line break.
"""

from __future__ import annotations

import re
from base64 import b64encode

RUN = "window.__xss=1"
AT = "//127.0.0.1:9/x"
SCRIPT = f"<script>{RUN}</script>"
IMAGE = f"<img src={AT} onerror={RUN}>"


def _list(items: str) -> tuple[str, ...]:
    """Items of a list; RUN, AT, SCRIPT and IMAGE stand for the above."""
    for name in ("SCRIPT", "IMAGE", "RUN", "AT"):
        items = re.sub(rf"\b{name}\b", lambda _, name=name: globals()[name], items)
    return tuple(item.replace("⏎", "\n") for item in re.split(r" ¦ |\n", items.strip("\n")))


_CONTROLS = "\0\x01\x08\x0b\x0c\x0e\x1a\x7f\x80\x85\x9b\xa0\xad\u061c\u115f\u180e\u200b\u200d\u200e\u200f\u2028\u2029"
_CONTROLS += "\u202a\u202d\u202e\u2060\u2066\u2069\u2800\u3000\ufdd0\ufeff\ufff9\ufffc\ufffd\ufffe\uffff\ud800\udfff"
_CONTROLS += "\U0001d173\U000e0001\U0010ffff"

#: Class -> its strings; no string is in two classes.
BY_CLASS: dict[str, tuple[str, ...]] = {
    "script elements": _list("""SCRIPT ¦ <ScRiPt>RUN<!-- ¦ <script/x src=AT></script> ¦ <<script>RUN//<</script>
<script⏎type=module>RUN</script\t> ¦ <scr<script>ipt>RUN</script> ¦ <\u017fcript>RUN"""),
    "encodings": (
        *(
            "".join(form.format(ord(letter)) for letter in SCRIPT)
            for form in ("&#{};", "&#x{:x};", "%{:02x}", "\\u{:04x}")
        ),
        *_list("&lt;script&gt;RUN ¦ &lt;img src=x onerror=RUN&gt; ¦ &amp;lt;b&amp;gt; ¦ +ADw-script+AD4-RUN"),
        *("\uff1cscript\uff1e", "\xc0\xbcscript\xc0\xbe", b64encode(SCRIPT.encode()).decode()),
    ),
    "event handlers": _list("""<img src=x onerror=RUN> ¦ <svg/onload='RUN'> ¦ <body\tonload\t=⏎RUN>
<details open ontoggle=RUN>
<input autofocus onfocus="RUN"> ¦ <x onpointerenter=RUN> ¦ <a href=# onclick=RUN>x
<\x0csvg\x0conload\x0c=RUN//>"""),
    "attribute breakouts": _list("""\" onmouseover=RUN x= ¦ ' autofocus onfocus=RUN y= ¦ `>IMAGE
\"'><svg/onload=RUN> ¦ &quot;>IMAGE
\\"/>SCRIPT ¦ \u201d;RUN;// ¦ \uff02>IMAGE ¦ \0" style=x"""),
    "closing of elements, comments and sections": (
        *(f"</{name}>{SCRIPT}" for name in ("html", "title", "style", "script", "pre", "table", "svg", "textarea")),
        *_list("""-->IMAGE ¦ --!>SCRIPT ¦ <!--IMAGE ¦ ]]>IMAGE ¦ <![CDATA[SCRIPT ¦ */IMAGE ¦ <?xml SCRIPT
<!DOCTYPE IMAGE ¦ </ IMAGE
<!-->IMAGE ¦ <%IMAGE"""),
    ),
    "addresses": _list("""javascript:RUN ¦ JaVa\tScRiPt:RUN ¦ \x01javascript:RUN ¦ &#106;avascript:RUN
java&Tab;script:RUN
<a href="javascript:RUN">x ¦ <iframe src='data:text/html,SCRIPT'> ¦ <svg><a xlink:href=javascript:RUN><rect /></a>
vbscript:RUN ¦ AT ¦ http:AT ¦ file:AT ¦ \\\\127.0.0.1\\x"""),
    "SVG, MathML and nesting that parsers repair": _list("""<svg><foreignObject>IMAGE ¦ <math><mtext>SCRIPT
<svg><style>IMAGE
<math><annotation-xml encoding=text/html>SCRIPT ¦ <form><math><mtext></form><form><mglyph><style></math>IMAGE
<svg><animate onbegin=RUN attributeName=x dur=1s> ¦ <svg><set attributeName=href to=javascript:RUN> ¦ <svg></p>IMAGE
<noscript><p title="</noscript>IMAGE"> ¦ <textarea><textarea/></textarea>IMAGE ¦ <title><!--</title>IMAGE-->
<plaintext>"""),
    "template languages": _list("""{{7*7}} ¦ {% print(config) %} ¦ {# x #} ¦ ${7*7} ¦ #{7*7} ¦ <%= 7*7 %>
{% raw %} ¦ {%- endif -%}
{{''.__class__.__mro__[1].__subclasses__()}} ¦ {{constructor.constructor('RUN')()}} ¦ {% include '/etc/passwd' %}
<div ng-app ng-csp>{{$eval.constructor('RUN')()}}</div> ¦ {% for x in range(9999999999) %}x{% endfor %}"""),
    "styles": _list("""<style>*{background:url(AT)}</style> ¦ <p style='position:fixed;inset:0'>
" style="background:url(AT)
</style><style>@import url(AT); ¦ <link rel=stylesheet href=AT> ¦ } * { content:url(AT) } ¦ width:expression(RUN)"""),
    "elements that load, send or navigate": _list("""<meta http-equiv="refresh" content="0;url=AT">
<base href=AT> ¦ <iframe src=AT>
<form action=AT><input type=submit autofocus> ¦ <embed src=AT> ¦ <object data=AT> ¦ <img srcset=AT>
<video poster=AT>
<input type=image src=AT> ¦ <link rel=prefetch href=AT> ¦ <iframe srcdoc="SCRIPT"> ¦ <a ping=AT href=#>
<body background=AT>
<a id=data></a><a id=data name=textContent href=x> ¦ <p id="rows"></p><p id="main">
<button form=filters formaction=AT>"""),
    "script data": _list("""";RUN;// ¦ \\"];RUN;// ¦ "}]</script>SCRIPT ¦ \\u0022+(RUN)+ ¦ \u2028RUN ¦ \r;RUN;//
`<!--<script>RUN
<!--<script> ¦ </SCRIPT\t ¦ <\\/script> ¦ {"__proto__": {"__xss": 1}} ¦ __proto__ ¦ constructor ¦ NaN ¦ 1e999
import('AT')"""),
    "Unicode": (
        *(f"a{letter}b" for letter in _CONTROLS),
        *(f"<{letter}script>{RUN}</script>" for letter in _CONTROLS[::3]),
        *(
            "\u202egpj.exe",
            "e" + "\u0300" * 60,
            "\ud800\ud800<b>",
            "\udc00\ud800",
            "\U0001f469\u200d\U0001f680",
            "\ufdfd" * 30,
        ),
    ),
    "Markdown": _list("""[x](javascript:RUN) ¦ ![x](http:AT) ¦ [x](http:AT "y") ¦ [x][y]⏎⏎[y]: AT ¦ <http:AT>
\\[x](#main) ¦ [x\\](<x y>)
a|b|c ¦ a\\|b ¦ a\\\\|b ¦ |---|⏎|---| ¦ a⏎b ¦ a\r⏎b\r⏎\r⏎# c ¦ `|` ¦ ``|``` ` ¦ \\ ¦ a\\ ¦ || ¦ | |⏎ ¦ &#124;
&vert; ¦ # x ¦ > x
- x ¦ + x ¦ * x ¦ 1. x ¦ 1) x ¦ --- ¦ *** ¦ === ¦ \tx ¦     x ¦ ```⏎x⏎``` ¦ ~~~⏎x ¦ <!-- x ¦ <details><summary>x
- [ ] x
[^1]: x ¦ : x ¦ $$x$$ ¦ $`x`$ ¦ ~~x~~ ¦ **x ¦ __x__ ¦ `x ¦ `` ¦ <b>x</b> ¦ &copy; ¦ @octocat ¦ a @octocat b
x@example.org
WWW.example.org ¦ see https:AT. ¦ ftp:AT ¦ GH-1 ¦ mailto:x@example.org ¦ -⏎- ¦ x⏎=== ¦ x⏎---"""),
    "LaTeX": _list(r"""\input{/etc/passwd} ¦ \immediate\write18{id} ¦ \href{javascript:x}{y} ¦ \def\x{\x}\x
\catcode`\%=12
\end{tabular} ¦ \end{document} ¦ \verb|x| ¦ \\[2cm] ¦ \hline ¦ ^^5cinput{x} ¦ ^^5c^^5c ¦ \^^M ¦ x} \input{x}
x & y ¦ % ⏎\input{x}
100 % ¦ $x$ ¦ x_1^2 ¦ ~ ¦ { ¦ } ¦ {{ ¦ \\\\* ¦ [ ¦ -- ¦ '' ¦ ?` ¦ << ¦ " ¦ %"""),
    "formulas": (
        *_list("""=1+1 ¦ +1+1 ¦ -1+1 ¦ @SUM(1) ¦ \t=1+1 ¦ \r=1+1 ¦  =1+1 ¦ '=1+1 ¦ "=1+1 ¦ |x ¦ %x ¦ \0=1+1
\ufeff=1+1 ¦ \xa0=1+1
=cmd|' /C calc'!A0 ¦ =HYPERLINK("http:AT","y") ¦ x;=1+1 ¦ x;  @SUM(1) ¦ x\t=1+1 ¦ x";=1+1 ¦ x,=1+1 ¦ ;=1+1 ¦ ;;+1"""),
        *("\n=1+1", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x", "\u200b=1+1"),
    ),
    "commands to CI systems": _list("""::set-output name=x::x ¦ \t::error::x ¦ x⏎::warning file=a,line=1::x
##[add-path]x ¦ x ##[error]x
##vso[task.x;]x ¦ \u2003::add-mask::x ¦ ::stop-commands ::%0A::error::y ¦ :: ¦ ::: ¦ x\r::error::y ¦ x\x0b::error::y
x\x85::error::y ¦ x\u2028::error::y ¦ ###[error] ¦ %0A::error::x"""),
    "terminal escapes": _list("""\x1b[31mx ¦ \x1b[2Jx ¦ \x1b[1Ax ¦ \x1b[?1049hx ¦ \x1b]0;x\x07 ¦ \x1b]52;c;eA==\x07
\x1bc ¦ \x1b(0x
\x1b]8;;http:AT\x07y\x1b]8;;\x07 ¦ \x1bP+q\x1b\\ ¦ \x1b ¦ \x9b31mx ¦ \x9d0;x\x9c ¦ \x90x\x9c ¦ a\rb ¦ a\x07b
\x0e\x0f"""),
    "console markup and shell": _list("""[red]x ¦ [bold]x[/bold] ¦ [/] ¦ [/red]x ¦ [link=http:AT]x[/link]
[@click=app.bell]x ¦ [red ¦ \\[red]x
[[red]]x ¦ [] ¦ :smile: ¦ {task.description} ¦ {} ¦ {0} ¦ %s ¦ %(x)s ¦ $(id) ¦ `id` ¦ ${PATH} ¦ ; id ¦ | id
&& id"""),
    "names, entities and XML": (
        *_list("""../../etc/passwd ¦ ..\\..\\x ¦ /etc/passwd ¦ C:\\x ¦ CON ¦ nul.txt ¦ . ¦ .. ¦ ~root ¦ -rf
--help ¦ x\0.json ¦ x.
file:///etc/passwd ¦ x/ ¦ x?y#z ¦ %2e%2e%2f ¦ a:b ¦ a: b: c ¦ * ¦ null ¦ true ¦ 0 ¦ -0 ¦ 1e5 ¦ inf ¦ a'b"c ¦ & ¦ <
> ¦ &lt;
&amp;amp; ¦ &notit; ¦ &#0; ¦ &#x110000; ¦ &#xd800; ¦ &y; ¦ ]]> ¦ </system-out> ¦ </testsuites> ¦ " failures="0
<x:y xmlns:x='z'/> ¦ <?xml version="1.0"?><x> ¦ <!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]>&y;"""),
        *("x" * 3000, "\u00e9" * 300, " x "),
    ),
}
ALL = tuple(text for texts in BY_CLASS.values() for text in texts)
