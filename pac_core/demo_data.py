"""The embedded data set of ``pac demo``: commands to a home assistant, to be sorted into intents.

The commands are made from phrases, slots, polite words and a few typing errors. The phrases of the evaluation samples
never occur in training, several intents differ by little (a light on, off or dimmed; a door locked, unlocked or asked
about), and a quarter of the commands name a second one that is taken back or forbidden ("call mum, no wait, play
bolero"; "lock the front door, but don't dim the light"), so that there is something to learn.
"""

from __future__ import annotations

import random
import re

from pac_core.columns import Sample

TRAIN_EACH = 90
EVAL_EACH = 20
MIXED = 0.25

SLOTS = {
    "room": "kitchen|bedroom|living room|hall|bathroom|office|garage|nursery|attic|dining room|guest room|cellar",
    "lamp": "light|lamp|lights|ceiling light|lamps",
    "door": "front door|back door|garage door|side gate|cellar door|balcony door|patio door",
    "time": "six|half past seven|7:15 am|noon|5 pm|quarter to nine|8:30|ten in the evening|6:45 tomorrow|midnight",
    "day": "tomorrow|on monday|on friday|next tuesday|this weekend|on the third|tonight|on sunday",
    "span": "five minutes|ten minutes|half an hour|an hour|ninety seconds|twenty minutes|three minutes|two hours",
    "food": "pasta|eggs|rice|tea|pizza|bread|chicken|potatoes|cake",
    "degrees": "18|19|20|21|22|23 and a half|seventeen|twenty",
    "song": "yesterday|blue in green|the four seasons|clair de lune|dancing queen|bolero|imagine|so what",
    "artist": "nina simone|the beatles|bach|miles davis|abba|queen|mozart|bob dylan|adele",
    "person": "mum|anna|my brother|dr patel|tom|grandma|the plumber|sofia|my boss|uncle joe",
    "news": "i am running late|dinner is ready|the train is delayed|happy birthday|i will be home by eight",
    "chore": "water the plants|take out the bins|feed the cat|pay the rent|take my pills|back up my phone",
    "event": "dentist appointment|parents' evening|team meeting|haircut|dinner with sofia|yoga class|car service",
    "city": "berlin|oslo|lisbon|boston|kyoto|leeds|the mountains|town",
    "item": "milk|bread|washing powder|apples|coffee|bin bags|butter|olive oil|toothpaste|bananas",
}

# Phrases are parted by |. Those with ~ before them are no commands, so "could you" does not go with them.
TRAIN_PHRASES = {
    "light_on": """turn on the {lamp} in the {room}|switch the {room} {lamp} on|light up the {room}|
        ~it is dark in the {room}|~i can't see a thing in the {room}|~i need light in the {room}|
        ~why is the {lamp} in the {room} still off|~lights on in the {room}|
        ~the {lamp} in the {room} should be on when i get there|~it is so dark in the {room} that i need the {lamp}|
        make the {room} bright|flick on the {lamp} for the {room}|~could use some light in the {room}|
        ~i am about to go into the {room}, light it""",
    "light_off": """turn off the {lamp} in the {room}|switch the {room} {lamp} off|make the {room} dark|
        ~i don't need light in the {room} any more|~why is the {lamp} in the {room} still on|
        put out the {lamp} in the {room}|~lights out in the {room}|shut the {room} {lamp} off|
        stop burning light in the {room}|~the {room} is empty but still lit|darken the {room} completely|
        cut the {lamp} in the {room}|~time to sleep, {room} {lamp} off""",
    "light_dim": """dim the {lamp} in the {room}|lower the {room} {lamp} to thirty percent|
        soften the {lamp} in the {room}|~the {lamp} in the {room} is too bright|turn the {room} {lamp} down a little|
        bring the {lamp} in the {room} down a notch|~the {room} {lamp} hurts my eyes|
        set the {lamp} in the {room} to low|~it is glaring in the {room}|~the {lamp} in the {room} could be gentler|
        give the {room} a softer light""",
    "heating_up": """turn the heating up in the {room}|make the {room} warmer|~it is freezing in the {room}|
        heat the {room} to {degrees}|~i am cold in the {room}|~{degrees} degrees is too cold for the {room}|
        put a few more degrees on in the {room}|increase the temperature in the {room}|~the {room} could be warmer|
        ~the {room} is much colder than i like|turn the radiator on in the {room}|get the {room} up to {degrees}|
        ~it should be warmer than {degrees} in the {room}|crank the radiator up in the {room}|
        take the chill off the {room}""",
    "heating_down": """turn the heating down in the {room}|make the {room} cooler|~it is far too hot in the {room}|
        cool the {room} down to {degrees}|lower the {room} to {degrees} degrees|take a few degrees off in the {room}|
        ~the {room} is like an oven|reduce the temperature in the {room}|~the {room} could be cooler|
        ~it is roasting in the {room}|~the {room} is much warmer than i like|get the {room} down to {degrees}|
        ~too warm in the {room}|bring the {room} back to {degrees}|~it needn't be warmer than {degrees} in the {room}|
        turn the radiator back down in the {room}|~it is too warm to sleep in the {room}""",
    "heating_query": """~how warm is it in the {room}|~what is the temperature in the {room}|
        tell me how many degrees the {room} has|~what is the thermostat in the {room} set to|~is it cold in the {room}|
        ~has the {room} reached {degrees} degrees yet|~is the {room} warm enough|read me the thermometer in the {room}|
        find out how cold the {room} is|~is the radiator in the {room} running|
        ~which temperature did i choose for the {room}""",
    "alarm_set": """wake me up at {time}|set an alarm for {time}|put the alarm on for {time}|
        get me out of bed at {time}|~i need an alarm at {time}|ring me awake at {time}|~alarm at {time}|
        add an alarm {day} at {time}|schedule a wake-up for {time}|~my shift starts early, so wake me {day} at {time}|
        make it ring at {time} in the morning|~early start {day}, {time}""",
    "alarm_cancel": """cancel the alarm for {time}|delete my {time} alarm|turn off the alarm at {time}|
        remove the alarm {day}|~no alarm {day}|switch off the wake-up for {time}|~i can sleep in {day}, so no alarm|
        drop the {time} alarm|clear all my alarms|skip my alarm {day}|get rid of the wake-up at {time}|
        ~i am off {day}, don't get me up""",
    "timer_set": """set a timer for {span}|start counting down {span}|time {span} for the {food}|
        give me {span} on the clock|~tell me when {span} are over|~i need a timer of {span}|beep in {span}|
        ~let me know in {span} that the {food} is done|count {span} for my {food}|~i put the {food} in, {span}|
        start {span} for the {food}|~the {food} comes out in {span}|start the kitchen clock at {span}|
        ~shout when {span} have passed""",
    "timer_query": """~how long is left on the timer|~how much time does the {food} still need|check the {food} timer|
        ~when is the timer done|~is the {food} timer still running|~how long until the {food} is ready|
        ~what is left of the {span}|look how far the timer is|~did the timer for the {food} go off already|
        ~how many minutes are left|~has the {food} been in long enough|~has it been {span} already|
        see how many minutes we still have|~how long will the countdown go on""",
    "reminder_set": """remind me to {chore} {day}|~don't let me forget to {chore}|set a reminder to {chore}|
        tell me at {time} to {chore}|nudge me in {span} to {chore}|~i have to remember to {chore}|
        ~at {time} i should {chore}, tell me then|ping me about the {event} {day}|help me remember the {event} {day}|
        ~i always forget to {chore}, remind me|bring up the {event} again {day}|
        ~in {span} it is time to {chore}, tell me|get after me to {chore}""",
    "music_play": """play {song}|play something by {artist}|~i want to hear {song}|start {song} in the {room}|
        ~i feel like listening to {artist}|let me hear {song} by {artist}|go on with the music|resume {artist}|
        ~it is too quiet here, some music|carry on playing {song}|~how about {song}|give me some {artist}|
        ~time for some music by {artist}|continue the song|find {song} and start it|~some tunes for the {room}""",
    "music_pause": """stop the music|pause {song}|~no more {artist}|~enough music for now|hold the song for a moment|
        stop playing {artist}|~i don't want to hear {song}|silence the speakers in the {room}|end the music|
        ~can't listen to {artist} now, i am on the phone|halt {song}|~no music now|
        ~it should be silent here, stop the song|~that is enough of {song}|freeze the track|
        ~i need it silent in the {room}""",
    "volume_up": """turn the volume up|make it louder|turn up {artist}|~i can't hear the music in the {room}|
        raise the volume|~the music is too quiet|pump up the sound in the {room}|~louder|increase the volume a bit|
        ~i can hardly hear {artist}|put the speakers up a notch|~{song} should be louder|give me more volume|
        turn {song} up a bit|~i can't hear {song} well enough|blast {song}|give {song} more power|
        ~speak up, i can't hear the song""",
    "volume_down": """turn the volume down|make it quieter|turn down {artist}|~the music is too loud in the {room}|
        lower the volume|~softer|~my ears hurt from {artist}|reduce the volume a bit|
        ~keep the music low, the baby is asleep|bring the sound down in the {room}|~not so loud|
        put the speakers down a notch|~{artist} is much too loud|give me less volume|
        ~the sound is hurting my head, turn it down|~quieter, people are complaining|~half as loud would do|
        ~a little less volume|calm the speakers in the {room}|~keep {song} in the background""",
    "message_send": """send {person} a message that {news}|text {person} {news}|write to {person} that {news}|
        let {person} know {news}|message {person}, {news}|~{person} should know that {news}|
        pass on to {person} that {news}|reply to {person} that {news}|answer {person} with {news}|
        ~{person} is waiting to hear that {news}|~get word to {person}: {news}|type a note to {person}, {news}""",
    "message_read": """read me my messages|~what did {person} write|~any news from {person}|
        read out the last message from {person}|check my messages|~do i have new messages|~has {person} answered|
        show me what {person} sent|open my inbox|tell me who wrote to me|~what is new in my inbox|
        ~did i get a reply from {person}|~who has been writing to me|
        let me hear what {person} had to say in the text""",
    "call_make": """call {person}|ring {person}|phone {person} for me|~i want to talk to {person}|dial {person}|
        ~i need to speak to {person}|connect me with {person}|start a call to {person}|call {person} back|
        put me through to {person}|~is {person} reachable, try the number|try calling {person}|
        ~let me speak with {person} now""",
    "door_lock": """lock the {door}|~the {door} should be locked|make sure the {door} is locked|secure the {door}|
        ~i forgot to lock the {door}|~nobody gets in by the {door}|~i am leaving, lock the {door}|
        shut and lock the {door}|keep the {door} locked|~lock up, i am leaving by the {door}|
        ~no one should be able to open the {door}|~we are off, see that the {door} is locked|
        ~i don't want anybody coming in through the {door}|~the {door} is still unlocked, change that|
        put the bolt on the {door}""",
    "door_unlock": """unlock the {door}|open the {door} for {person}|~{person} is at the {door}, let them in|
        release the lock of the {door}|~i am locked out at the {door}|undo the lock on the {door}|
        ~i am home, open the {door}|~don't keep the {door} locked|~i have no key for the {door}, open up|
        ~i am outside and can't get in at the {door}|~{person} has no key, unlock the {door}|
        ~the {door} doesn't have to stay locked|take the bolt off the {door}|~let me through the {door}""",
    "door_query": """~is the {door} locked|~did i lock the {door}|~is the {door} open|
        ~have we left the {door} unlocked|tell me if the {door} is shut|~was the {door} opened today|
        see if someone locked the {door}|~what is the state of the {door}|~is anyone at the {door}|
        find out if the {door} was left open|~when was the {door} last used|
        look whether the {door} is shut properly""",
    "weather_query": """~what is the weather like in {city}|~will it rain {day}|~how cold does it get {day} in {city}|
        tell me the forecast for {city}|~is it warm in {city}|~is it going to snow {day}|
        ~how many degrees are there outside|~will the sun shine {day}|~should i take a coat {day}|
        ~is it sunny in {city}|~is there a storm on the way|~what should i wear outside {day}|~any storms coming {day}|
        find out if it freezes {day}|~sunglasses or raincoat {day}""",
    "shopping_add": """add {item} to the shopping list|put {item} on the list|~we need {item}|
        write {item} on my shopping list|~i have to buy {item}|~there is no {item} left|
        ~{item} and {item} for the list|include {item} in the shopping|get {item} onto the list|
        ~the {item} is almost gone|~more {item}, please, on the list|~we could do with more {item}|
        ~get {item} when we go shopping|jot {item} down with the groceries""",
    "shopping_remove": """take {item} off the shopping list|remove {item} from the list|~i already bought {item}|
        delete {item} from my shopping|~we don't need {item} any more|strike {item} off the list|~no {item} this time|
        ~there is still {item} left, so not on the list|~{person} got the {item}, it can come off|
        ~{person} bought {item} already|~don't put {item} on the list|erase {item} from the groceries|
        ~i found more {item} in the cupboard|leave {item} out of the shopping""",
    "shopping_query": """~what is on the shopping list|read me the shopping list|~is {item} on the list|
        ~do we need {item}|~what do i have to buy|~did i put {item} on the list|~have we got {item} down|
        tell me what to get from the shop|~how long is the shopping list|~what are we out of|
        show me the list for the shop|~what else must i buy|~is {item} written down|~what is still to be bought|
        go through the shopping list|see whether we wanted {item}|~anything left to buy|
        ~what did we write down for the supermarket|go over the groceries with me""",
    "calendar_add": """put {event} in my calendar {day}|add a {event} {day} at {time}|~i have a {event} {day}|
        book {event} into my diary {day}|block {time} {day} for the {event}|~new appointment, {event} at {time}|
        plan a {event} {day}|~the {event} is {day} at {time}, note it|pencil in {event} {day}|
        ~i agreed to a {event} {day}|set up a {event} {day}|mark {event} down for {time}""",
    "calendar_query": """~what is in my calendar {day}|~when is the {event}|~am i free at {time}|check my diary {day}|
        tell me my appointments {day}|~is the {event} {day}|~at what time is the {event}|read me my plans {day}|
        ~how busy am i {day}|~which appointments do i have {day}|~what is happening {day}|go through my schedule {day}|
        ~any appointments around {time}|look up when i have my {event}""",
}
EVAL_PHRASES = {
    "light_on": """~there is no light in the {room} and i need some|bring the {room} out of the dark|
        put the {lamp} on in the {room}|get the {room} {lamp} going|stop leaving me in the dark in the {room}|
        ~the {room} is pitch black""",
    "light_off": """~somebody left the {lamp} on in the {room}|~the {room} doesn't have to be lit|
        kill the {lamp} in the {room}|~nobody is in the {room}, so no light there|
        ~i am done in the {room}, the {lamp} can go off|~we have left the {room}, no need for the {lamp}""",
    "light_dim": """~not quite so much light in the {room}|take the brightness down in the {room}|
        make the {room} a bit darker|~half the light is enough in the {room}|~less light in the {room}, but not off|
        fade the {room} {lamp} a bit""",
    "heating_up": """~i am shivering in the {room}|~the {room} is chilly|raise the {room} to {degrees} degrees|
        warm up the {room}|~my feet are ice here in the {room}|~too cold in the {room}""",
    "heating_down": """~it is boiling in the {room}|~the {room} is stuffy and overheated|~i am sweating in the {room}|
        ~{degrees} degrees is too warm for the {room}|ease off the radiator in the {room}|
        turn the radiator off in the {room}""",
    "heating_query": """~how many degrees do we have in the {room}|~does the {room} get any heat at the moment|
        ~is the heating on in the {room}|check the temperature of the {room}|~are we heating the {room} right now|
        ~is it over {degrees} in the {room}""",
    "alarm_set": """~i want to be up by {time}|have me up at {time} {day}|~i have to get up at {time}|
        make sure i am awake at {time}|~don't let me sleep past {time}|~sleep until {time} and no longer""",
    "alarm_cancel": """~the {time} alarm isn't needed|~i want to sleep longer than {time}, so no ringing|
        ~i don't need to get up at {time} any more|~don't wake me at {time} after all|
        ~let me sleep {day}, forget about {time}|undo the alarm i set for {time}""",
    "timer_set": """~{span} for the {food}, starting now|remind me of the {food} in the oven after {span}|
        ~the {food} needs {span}|put a {span} timer on for the {food}|run a timer, {span}|measure {span}""",
    "timer_query": """~what does the {food} timer say|~is there much time left for the {food}|
        tell me how many minutes remain for the {food}|~are the {span} over yet|~can i take the {food} out yet""",
    "reminder_set": """~i keep forgetting to {chore}, say something at {time}|prompt me {day} to {chore}|
        ~i must {chore} at {time}|make sure i {chore} {day}|put down that i need to {chore} {day}|
        ~it slips my mind to {chore}, mention it {day}""",
    "music_play": """~i am in the mood for {artist}|give me a bit of {song}|put on {artist}|
        ~some {artist} in the {room}|get some {artist} going in the {room}|~let's have {artist} now""",
    "music_pause": """cut the music|~quiet now, no songs|turn the music off in the {room}|
        ~i have had enough of {artist}|~stop it, i don't want {artist}""",
    "volume_up": """~a little more volume|~{artist} is barely audible|crank up {song}|~{artist} is much too quiet|
        ~i want to feel the bass in the {room}""",
    "volume_down": """~{artist} is deafening|~the neighbours complain about the music|play {song} more quietly|
        turn {song} down a bit""",
    "message_send": """inform {person} that {news}|shoot {person} a text saying {news}|tell {person} that {news}|
        drop {person} a line: {news}|~a text to {person}: {news}|forward to {person} that {news}""",
    "message_read": """~is there anything from {person} on my phone|go through my unread texts|~did {person} text me|
        ~what does the text from {person} say""",
    "call_make": """get hold of {person} by phone|~i would like a word with {person}|give {person} a call|
        get {person} on the line|ring up {person} {day}|reach {person} on the mobile""",
    "door_lock": """~the {door} must not stay open|turn the key in the {door}|bolt the {door}|
        close up the {door} for the night|~don't leave the {door} unlocked|turn the lock on the {door}""",
    "door_unlock": """~{person} can't get in at the {door}|~i am standing outside the {door} without keys|
        let {person} in by the {door}|~the {door} can be unlocked now|unbolt the {door}|free the {door}""",
    "door_query": """~could anyone walk in by the {door}|~am i sure the {door} is locked|
        check whether the {door} is locked|~who came through the {door}|~did anybody unlock the {door}|
        ~is the bolt on the {door}""",
    "weather_query": """~is it a day for the beach in {city}|~are there clouds over {city}|
        ~do i need an umbrella {day}|check the weather {day}|~what will it be like out {day}|
        ~is it dry enough outside to hang out the washing {day}""",
    "shopping_add": """~the {item} is nearly empty|~next time at the shop i want {item}|~we are out of {item}|
        note down {item} for the shop|~i used up the {item}|remember to buy {item}""",
    "shopping_remove": """~the {item} is taken care of|~somebody has bought {item}, so tick it off|
        ~we have enough {item}|cross off {item}|drop {item} from the shopping list|~don't buy {item}""",
    "shopping_query": """~which groceries are still to get|~are {item} and {item} noted|check if {item} is on the list|
        see if {item} is on the list already""",
    "calendar_add": """~{event} {day}, save the date|reserve {time} for {event}|schedule {event} for {time}|
        enter the {event} {day}|make an entry for the {event}|~keep {day} free for the {event}""",
    "calendar_query": """~is there time for a {event} {day}|~what am i doing {day}|~do i have anything {day}|
        ~what have i got planned {day}|~what do i have at {time}|~which day is the {event}""",
}

ASKING = ("could you", "can you", "please", "would you", "i want you to", "will you", "i'd like you to")
CALLING = ("hey", "ok home,", "hello,", "um,", "listen,", "so,", "right,")
CORRECTIONS = ("{other}, no wait, {text}", "{other}, sorry, i mean {text}", "i wanted to say {other}, but now {text}")
REFUSALS = ("{text}, but don't {other}", "{text} and do not {other}", "don't {other}, {text}")
CLOSING = ("please", "thanks", "thank you", "if you can", "right now", "ok")


def train_samples(seed: int = 0) -> list[Sample]:
    """2,430 commands in 27 intents, the same for the same seed."""
    return _samples("train", TRAIN_PHRASES, TRAIN_EACH, random.Random(f"train {seed}"))


def eval_samples(seed: int = 0) -> list[Sample]:
    """540 commands in the same intents, from phrases that `train_samples` does not use."""
    return _samples("eval", EVAL_PHRASES, EVAL_EACH, random.Random(f"eval {seed}"))


def phrases(table: dict[str, str], intent: str) -> list[str]:
    """The phrases of an intent, slots open."""
    return [" ".join(phrase.split()) for phrase in table[intent].split("|")]


def _samples(name: str, table: dict[str, str], each: int, rng: random.Random) -> list[Sample]:
    commands: dict[str, str] = {}
    for intent in table:
        choices = phrases(table, intent)
        made = 0
        while made < each:
            text = _command(choices[made % len(choices)], rng)
            if rng.random() < MIXED:
                text = _mixed(
                    text, rng.choice(phrases(table, rng.choice([name for name in table if name != intent]))), rng
                )
            made += text not in commands
            commands.setdefault(text, intent)
    pairs = list(commands.items())
    rng.shuffle(pairs)
    return [Sample(f"demo-{name}:{i}", text=text, label=intent) for i, (text, intent) in enumerate(pairs, 1)]


def _command(phrase: str, rng: random.Random) -> str:
    """One command: slots filled, polite or not, now and then with a typing error."""
    text = _filled(phrase, rng)
    if not phrase.startswith("~") and rng.random() < 0.4:
        text = f"{rng.choice(ASKING)} {text}"
    if rng.random() < 0.25:
        text = f"{rng.choice(CALLING)} {text}"
    if rng.random() < 0.25:
        text = f"{text} {rng.choice(CLOSING)}"
    return _typo(text, rng) if rng.random() < 0.06 else text


def _mixed(text: str, phrase: str, rng: random.Random) -> str:
    """``text`` together with another command that is taken back or forbidden, so that word order matters."""
    frames = CORRECTIONS if phrase.startswith("~") else CORRECTIONS + REFUSALS
    return rng.choice(frames).format(text=text, other=_filled(phrase, rng))


def _filled(phrase: str, rng: random.Random) -> str:
    return re.sub(r"{(\w+)}", lambda slot: rng.choice(SLOTS[slot[1]].split("|")), phrase.removeprefix("~"))


def _typo(text: str, rng: random.Random) -> str:
    """``text`` with two neighbouring letters of a longer word swapped."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if long:
        i = rng.choice(long)
        at = rng.randrange(1, len(words[i]) - 2)
        words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return " ".join(words)
