"""What the commands of `pac_core.demo_data` are made of: phrases with slots, and what fills them."""

from __future__ import annotations

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
    "light_on": """turn on the {lamp} in the {room}|switch the {room} {lamp} on|put the {lamp} on in the {room}|
        light up the {room}|~it is dark in the {room}|~i can't see a thing in the {room}|get the {room} {lamp} going|
        ~i need light in the {room}|~why is the {lamp} in the {room} still off|~lights on in the {room}|
        stop leaving me in the dark in the {room}|~the {lamp} in the {room} should be on when i get there|
        ~it is so dark in the {room} that i need the {lamp}|make the {room} bright""",
    "light_off": """turn off the {lamp} in the {room}|switch the {room} {lamp} off|kill the {lamp} in the {room}|
        make the {room} dark|~i don't need light in the {room} any more|~why is the {lamp} in the {room} still on|
        ~nobody is in the {room}, so no light there|put out the {lamp} in the {room}|~lights out in the {room}|
        shut the {room} {lamp} off|~i am done in the {room}, the {lamp} can go off|stop burning light in the {room}|
        ~the {room} is empty but still lit""",
    "light_dim": """dim the {lamp} in the {room}|lower the {room} {lamp} to thirty percent|
        make the {room} a bit darker|soften the {lamp} in the {room}|~the {lamp} in the {room} is too bright|
        turn the {room} {lamp} down a little|~half the light is enough in the {room}|
        bring the {lamp} in the {room} down a notch|~the {room} {lamp} hurts my eyes|
        set the {lamp} in the {room} to low|~less light in the {room}, but not off""",
    "heating_up": """turn the heating up in the {room}|make the {room} warmer|raise the {room} to {degrees} degrees|
        ~it is freezing in the {room}|heat the {room} to {degrees}|~i am cold in the {room}|warm up the {room}|
        ~{degrees} degrees is too cold for the {room}|put a few more degrees on in the {room}|
        increase the temperature in the {room}|~my feet are ice here in the {room}|~the {room} could be warmer|
        ~the {room} is much colder than i like|turn the radiator on in the {room}|~too cold in the {room}""",
    "heating_down": """turn the heating down in the {room}|make the {room} cooler|~i am sweating in the {room}|
        ~it is far too hot in the {room}|cool the {room} down to {degrees}|lower the {room} to {degrees} degrees|
        ~{degrees} degrees is too warm for the {room}|take a few degrees off in the {room}|~the {room} is like an oven|
        reduce the temperature in the {room}|ease off the radiator in the {room}|~the {room} could be cooler|
        ~it is roasting in the {room}|~the {room} is much warmer than i like|turn the radiator off in the {room}|
        get the {room} down to {degrees}|~too warm in the {room}""",
    "heating_query": """~how warm is it in the {room}|~what is the temperature in the {room}|
        ~is the heating on in the {room}|tell me how many degrees the {room} has|
        ~what is the thermostat in the {room} set to|~is it cold in the {room}|check the temperature of the {room}|
        ~has the {room} reached {degrees} degrees yet|~is the {room} warm enough|read me the thermometer in the {room}|
        ~are we heating the {room} right now""",
    "alarm_set": """wake me up at {time}|set an alarm for {time}|~i have to get up at {time}|
        put the alarm on for {time}|get me out of bed at {time}|~i need an alarm at {time}|
        make sure i am awake at {time}|ring me awake at {time}|~alarm at {time}|add an alarm {day} at {time}|
        ~don't let me sleep past {time}|schedule a wake-up for {time}""",
    "alarm_cancel": """cancel the alarm for {time}|delete my {time} alarm|~i don't need to get up at {time} any more|
        turn off the alarm at {time}|remove the alarm {day}|~no alarm {day}|~don't wake me at {time} after all|
        switch off the wake-up for {time}|~i can sleep in {day}, so no alarm|drop the {time} alarm|clear all my alarms|
        ~let me sleep {day}, forget about {time}""",
    "timer_set": """set a timer for {span}|start counting down {span}|~the {food} needs {span}|
        time {span} for the {food}|give me {span} on the clock|~tell me when {span} are over|
        put a {span} timer on for the {food}|~i need a timer of {span}|beep in {span}|
        ~let me know in {span} that the {food} is done|run a timer, {span}|count {span} for my {food}|
        ~i put the {food} in, {span}|start {span} for the {food}""",
    "timer_query": """~how long is left on the timer|~how much time does the {food} still need|check the {food} timer|
        ~when is the timer done|tell me how many minutes remain for the {food}|~is the {food} timer still running|
        ~how long until the {food} is ready|~what is left of the {span}|~are the {span} over yet|
        look how far the timer is|~did the timer for the {food} go off already|~how many minutes are left|
        ~has the {food} been in long enough""",
    "reminder_set": """remind me to {chore} {day}|~don't let me forget to {chore}|~i must {chore} at {time}|
        set a reminder to {chore}|tell me at {time} to {chore}|nudge me in {span} to {chore}|make sure i {chore} {day}|
        ~i have to remember to {chore}|~at {time} i should {chore}, tell me then|ping me about the {event} {day}|
        put down that i need to {chore} {day}|help me remember the {event} {day}|
        ~i always forget to {chore}, remind me""",
    "music_play": """play {song}|play something by {artist}|put on {artist}|~i want to hear {song}|
        start {song} in the {room}|~i feel like listening to {artist}|~some {artist} in the {room}|
        let me hear {song} by {artist}|go on with the music|resume {artist}|~it is too quiet here, some music|
        carry on playing {song}|get some {artist} going in the {room}|~how about {song}|give me some {artist}|
        ~time for some music by {artist}""",
    "music_pause": """stop the music|pause {song}|~no more {artist}|turn the music off in the {room}|
        ~enough music for now|hold the song for a moment|stop playing {artist}|~i don't want to hear {song}|
        silence the speakers in the {room}|~i have had enough of {artist}|end the music|
        ~can't listen to {artist} now, i am on the phone|halt {song}|~no music now|
        ~it should be silent here, stop the song""",
    "volume_up": """turn the volume up|make it louder|turn up {artist}|~i can't hear the music in the {room}|
        raise the volume|~the music is too quiet|crank up {song}|pump up the sound in the {room}|~louder|
        increase the volume a bit|~i can hardly hear {artist}|put the speakers up a notch|~{song} should be louder|
        give me more volume|~{artist} is much too quiet|turn {song} up a bit|~i can't hear {song} well enough""",
    "volume_down": """turn the volume down|make it quieter|turn down {artist}|~the music is too loud in the {room}|
        lower the volume|~softer|play {song} more quietly|~my ears hurt from {artist}|reduce the volume a bit|
        ~keep the music low, the baby is asleep|bring the sound down in the {room}|~not so loud|
        put the speakers down a notch|~{artist} is much too loud|give me less volume|turn {song} down a bit|
        ~the sound is hurting my head, turn it down|~quieter, people are complaining""",
    "message_send": """send {person} a message that {news}|text {person} {news}|tell {person} that {news}|
        write to {person} that {news}|let {person} know {news}|message {person}, {news}|drop {person} a line: {news}|
        ~{person} should know that {news}|pass on to {person} that {news}|reply to {person} that {news}|
        ~a text to {person}: {news}|answer {person} with {news}""",
    "message_read": """read me my messages|~what did {person} write|~any news from {person}|~did {person} text me|
        read out the last message from {person}|check my messages|~do i have new messages|~has {person} answered|
        show me what {person} sent|~what does the text from {person} say|open my inbox|tell me who wrote to me""",
    "call_make": """call {person}|ring {person}|give {person} a call|phone {person} for me|~i want to talk to {person}|
        dial {person}|get {person} on the line|~i need to speak to {person}|connect me with {person}|
        start a call to {person}|ring up {person} {day}|call {person} back|put me through to {person}""",
    "door_lock": """lock the {door}|~the {door} should be locked|bolt the {door}|make sure the {door} is locked|
        secure the {door}|~i forgot to lock the {door}|close up the {door} for the night|~nobody gets in by the {door}|
        ~i am leaving, lock the {door}|shut and lock the {door}|~don't leave the {door} unlocked|
        keep the {door} locked|~lock up, i am leaving by the {door}|~no one should be able to open the {door}|
        turn the lock on the {door}""",
    "door_unlock": """unlock the {door}|open the {door} for {person}|let {person} in by the {door}|
        ~{person} is at the {door}, let them in|release the lock of the {door}|~i am locked out at the {door}|
        ~the {door} can be unlocked now|undo the lock on the {door}|~i am home, open the {door}|
        ~don't keep the {door} locked|unbolt the {door}|~i have no key for the {door}, open up|
        ~i am outside and can't get in at the {door}|~{person} has no key, unlock the {door}""",
    "door_query": """~is the {door} locked|~did i lock the {door}|check whether the {door} is locked|
        ~is the {door} open|~have we left the {door} unlocked|tell me if the {door} is shut|
        ~who came through the {door}|~was the {door} opened today|see if someone locked the {door}|
        ~what is the state of the {door}|~did anybody unlock the {door}|~is anyone at the {door}""",
    "weather_query": """~what is the weather like in {city}|~will it rain {day}|~do i need an umbrella {day}|
        ~how cold does it get {day} in {city}|tell me the forecast for {city}|~is it warm in {city}|
        check the weather {day}|~is it going to snow {day}|~how many degrees are there outside|
        ~will the sun shine {day}|~should i take a coat {day}|~what will it be like out {day}|~is it sunny in {city}|
        ~is there a storm on the way|~what should i wear outside {day}""",
    "shopping_add": """add {item} to the shopping list|put {item} on the list|~we are out of {item}|~we need {item}|
        write {item} on my shopping list|~i have to buy {item}|note down {item} for the shop|~there is no {item} left|
        ~{item} and {item} for the list|include {item} in the shopping|~i used up the {item}|get {item} onto the list|
        ~the {item} is almost gone|~more {item}, please, on the list""",
    "shopping_remove": """take {item} off the shopping list|remove {item} from the list|~we have enough {item}|
        ~i already bought {item}|delete {item} from my shopping|~we don't need {item} any more|cross off {item}|
        strike {item} off the list|~no {item} this time|~there is still {item} left, so not on the list|
        drop {item} from the shopping list|~{person} got the {item}, it can come off|~{person} bought {item} already|
        ~don't put {item} on the list""",
    "shopping_query": """~what is on the shopping list|read me the shopping list|~is {item} on the list|
        ~do we need {item}|~what do i have to buy|check if {item} is on the list|~did i put {item} on the list|
        ~have we got {item} down|tell me what to get from the shop|~how long is the shopping list|~what are we out of|
        show me the list for the shop|~what else must i buy|~is {item} written down|
        see if {item} is on the list already|~what is still to be bought|go through the shopping list""",
    "calendar_add": """put {event} in my calendar {day}|add a {event} {day} at {time}|schedule {event} for {time}|
        ~i have a {event} {day}|book {event} into my diary {day}|block {time} {day} for the {event}|
        enter the {event} {day}|~new appointment, {event} at {time}|plan a {event} {day}|
        ~the {event} is {day} at {time}, note it|make an entry for the {event}|pencil in {event} {day}""",
    "calendar_query": """~what is in my calendar {day}|~when is the {event}|~do i have anything {day}|
        ~am i free at {time}|check my diary {day}|tell me my appointments {day}|~what have i got planned {day}|
        ~is the {event} {day}|~at what time is the {event}|read me my plans {day}|~what do i have at {time}|
        ~how busy am i {day}|~which appointments do i have {day}|~what is happening {day}""",
}
EVAL_PHRASES = {
    "light_on": """~there is no light in the {room} and i need some|bring the {room} out of the dark|
        ~the {room} is pitch black|flick on the {lamp} for the {room}|~could use some light in the {room}|
        ~i am about to go into the {room}, light it""",
    "light_off": """~somebody left the {lamp} on in the {room}|~the {room} doesn't have to be lit|
        darken the {room} completely|~we have left the {room}, no need for the {lamp}|cut the {lamp} in the {room}|
        ~time to sleep, {room} {lamp} off""",
    "light_dim": """~not quite so much light in the {room}|take the brightness down in the {room}|
        ~it is glaring in the {room}|~the {lamp} in the {room} could be gentler|give the {room} a softer light|
        fade the {room} {lamp} a bit""",
    "heating_up": """~i am shivering in the {room}|~the {room} is chilly|get the {room} up to {degrees}|
        ~it should be warmer than {degrees} in the {room}|crank the radiator up in the {room}|
        take the chill off the {room}""",
    "heating_down": """~it is boiling in the {room}|~the {room} is stuffy and overheated|
        bring the {room} back to {degrees}|~it needn't be warmer than {degrees} in the {room}|
        turn the radiator back down in the {room}|~it is too warm to sleep in the {room}""",
    "heating_query": """~how many degrees do we have in the {room}|~does the {room} get any heat at the moment|
        find out how cold the {room} is|~is the radiator in the {room} running|
        ~which temperature did i choose for the {room}|~is it over {degrees} in the {room}""",
    "alarm_set": """~i want to be up by {time}|have me up at {time} {day}|
        ~my shift starts early, so wake me {day} at {time}|make it ring at {time} in the morning|
        ~sleep until {time} and no longer|~early start {day}, {time}""",
    "alarm_cancel": """~the {time} alarm isn't needed|~i want to sleep longer than {time}, so no ringing|
        skip my alarm {day}|get rid of the wake-up at {time}|~i am off {day}, don't get me up|
        undo the alarm i set for {time}""",
    "timer_set": """~{span} for the {food}, starting now|remind me of the {food} in the oven after {span}|
        measure {span}|~the {food} comes out in {span}|start the kitchen clock at {span}|
        ~shout when {span} have passed""",
    "timer_query": """~what does the {food} timer say|~is there much time left for the {food}|
        ~has it been {span} already|see how many minutes we still have|~how long will the countdown go on|
        ~can i take the {food} out yet""",
    "reminder_set": """~i keep forgetting to {chore}, say something at {time}|prompt me {day} to {chore}|
        bring up the {event} again {day}|~it slips my mind to {chore}, mention it {day}|
        ~in {span} it is time to {chore}, tell me|get after me to {chore}""",
    "music_play": """~i am in the mood for {artist}|give me a bit of {song}|~let's have {artist} now|continue the song|
        find {song} and start it|~some tunes for the {room}""",
    "music_pause": """cut the music|~quiet now, no songs|~that is enough of {song}|~stop it, i don't want {artist}|
        freeze the track|~i need it silent in the {room}""",
    "volume_up": """~a little more volume|~{artist} is barely audible|blast {song}|
        ~i want to feel the bass in the {room}|give {song} more power|~speak up, i can't hear the song""",
    "volume_down": """~{artist} is deafening|~the neighbours complain about the music|~half as loud would do|
        ~a little less volume|calm the speakers in the {room}|~keep {song} in the background""",
    "message_send": """inform {person} that {news}|shoot {person} a text saying {news}|
        ~{person} is waiting to hear that {news}|~get word to {person}: {news}|forward to {person} that {news}|
        type a note to {person}, {news}""",
    "message_read": """~is there anything from {person} on my phone|go through my unread texts|
        ~what is new in my inbox|~did i get a reply from {person}|~who has been writing to me|
        let me hear what {person} had to say in the text""",
    "call_make": """get hold of {person} by phone|~i would like a word with {person}|
        ~is {person} reachable, try the number|reach {person} on the mobile|try calling {person}|
        ~let me speak with {person} now""",
    "door_lock": """~the {door} must not stay open|turn the key in the {door}|
        ~we are off, see that the {door} is locked|~i don't want anybody coming in through the {door}|
        ~the {door} is still unlocked, change that|put the bolt on the {door}""",
    "door_unlock": """~{person} can't get in at the {door}|~i am standing outside the {door} without keys|
        free the {door}|~the {door} doesn't have to stay locked|take the bolt off the {door}|
        ~let me through the {door}""",
    "door_query": """~could anyone walk in by the {door}|~am i sure the {door} is locked|
        find out if the {door} was left open|~when was the {door} last used|~is the bolt on the {door}|
        look whether the {door} is shut properly""",
    "weather_query": """~is it a day for the beach in {city}|~are there clouds over {city}|~any storms coming {day}|
        ~is it dry enough outside to hang out the washing {day}|find out if it freezes {day}|
        ~sunglasses or raincoat {day}""",
    "shopping_add": """~the {item} is nearly empty|~next time at the shop i want {item}|remember to buy {item}|
        ~we could do with more {item}|~get {item} when we go shopping|jot {item} down with the groceries""",
    "shopping_remove": """~the {item} is taken care of|~somebody has bought {item}, so tick it off|~don't buy {item}|
        erase {item} from the groceries|~i found more {item} in the cupboard|leave {item} out of the shopping""",
    "shopping_query": """~which groceries are still to get|~are {item} and {item} noted|see whether we wanted {item}|
        ~anything left to buy|~what did we write down for the supermarket|go over the groceries with me""",
    "calendar_add": """~{event} {day}, save the date|reserve {time} for {event}|~i agreed to a {event} {day}|
        set up a {event} {day}|~keep {day} free for the {event}|mark {event} down for {time}""",
    "calendar_query": """~is there time for a {event} {day}|~what am i doing {day}|~which day is the {event}|
        go through my schedule {day}|~any appointments around {time}|look up when i have my {event}""",
}

# Opposites, as (what to do, what it is done to, how that shall then be). They are told in the same frames, so that the
# one word matters; the frames of evaluation are others.
OPPOSITES = {
    "light_on": ("turn on|switch on|put on", "the {room} {lamp}", "on|lit|burning"),
    "light_off": ("turn off|switch off|put out", "the {room} {lamp}", "off|out|dark"),
    "light_dim": ("dim|turn down|soften", "the {room} {lamp}", "dimmed|less bright|softer"),
    "heating_up": ("warm up|heat up|heat", "the {room}", "warmer|hotter|less cold"),
    "heating_down": ("cool down|cool off|cool", "the {room}", "cooler|colder|less hot"),
    "music_play": ("play|start|put on", "{song}", "playing|started|on"),
    "music_pause": ("stop|pause|halt", "{song}", "stopped|paused|over"),
    "volume_up": ("turn up|crank up|amplify", "{artist}", "louder|less quiet|turned up"),
    "volume_down": ("turn down|quieten|play down", "{artist}", "quieter|less loud|turned down"),
    "door_lock": ("lock|bolt|lock up", "the {door}", "locked|bolted|locked up"),
    "door_unlock": ("unlock|unbolt|open", "the {door}", "unlocked|unbolted|open"),
    "shopping_add": ("add|put down|write down", "{item} on the shopping list", "added|put down|written down"),
    "shopping_remove": ("remove|delete|cross off", "{item} on the shopping list", "removed|deleted|crossed off"),
}
TRAIN_FRAMES = (
    "{do} {it}|~i want {it} {so}|~{it} should be {so}|~it is time to {do} {it}|~can {it} be {so}|~why isn't {it} {so}|"
    "~i meant to {do} {it}|go and {do} {it}|~{it} is not {so} yet|~somebody has to {do} {it}|~better {do} {it}|"
    "have {it} {so}"
)
EVAL_FRAMES = (
    "~i would be glad to have {it} {so}|quickly {do} {it}|~{it} has to be {so}|~let's {do} {it}|~i wish {it} were {so}|"
    "~before i forget, {do} {it}|~what about {it}, shouldn't it be {so}|see to it that {it} is {so}"
)
